# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs
"""Backward of STU attention in Triton: one kernel for dK and dV, one for dQ, one for the tables.

Each recomputes the scores and each program writes what it alone owns: no atomics, no locks, so the
same inputs give the same bits. That takes 7 matrix products instead of 5, and no float32 buffer of
dQ to clear, add to and convert. With s the score, w = SiLU(s) and g the gradient of the output:

    dV_j = sum_i w_ij g_i / N        ds_ij = (g_i . v_j) SiLU'(s_ij) / N
    dQ_i = alpha sum_j ds_ij k_j     dK_j  = alpha sum_i ds_ij q_i       d_table[c] = sum ds_ij at c
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention.triton_backward_keys import differentiate_keys
from tzgen.ops.hstu_attention.triton_bias_gradient import table_gradients
from tzgen.ops.hstu_attention.triton_configs import SHIPPED, Config, Tuning
from tzgen.ops.hstu_attention.triton_launch import Launch
from tzgen.ops.hstu_attention.triton_mask import (
    full_tile,
    key_range,
    masked_tile,
    plan,
    visible,
)
from tzgen.ops.hstu_attention.triton_tiles import (
    half_bias,
    half_own_bias,
    load_tile,
    load_times,
    query_place,
    row_of,
    silu_and_slope,
    store_tile,
)


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    call: Call,
    *,
    tuning: Tuning = SHIPPED,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and of the two bias tables (float32; empty where there is no table)."""
    # not empty_like: that keeps the strides of a view into uvqk
    d_q, d_k, d_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if q.numel() == 0 or v.numel() == 0:
        return d_q.zero_(), d_k.zero_(), d_v.zero_(), *table_gradients(None, call, q, k, v, grad)
    launch = Launch(q, k, v, offsets, call, tuning)
    scale = 1.0 / call.divisor

    def run(kernel: str, config: Config) -> None:
        by_key = kernel == "keys"
        order = launch.order(config.block_n if by_key else config.block_m, by_key=by_key)
        function = differentiate_keys if by_key else differentiate_queries
        function[(order.slots * q.size(1),)](
            *launch.views(q, k, v, grad, *((d_k, d_v) if by_key else (d_q,))),
            order.codes,
            order.tiles_per_row,
            order.num_rows,
            launch.rows,
            launch.tables,
            call.alpha / 2,
            scale,
            q.size(1),
            SPEC=call.mask,
            TILE=launch.tile(config),
            **config.options,
        )

    with torch.cuda.device_of(q):
        for kernel in ("keys", "queries"):
            run(kernel, tuning.choose(kernel, launch.shape, partial(run, kernel)))
        return d_q, d_k, d_v, *table_gradients(launch, call, q, k, v, grad)


@triton.jit
def differentiate_queries(q, k, v, g, d_q, order, tiles_per_row, num_rows, rows, tables,
                          half_alpha, scale, heads, SPEC: tl.constexpr,
                          TILE: tl.constexpr):  # fmt: skip
    """dQ of one tile of queries and head, over the key tiles of the forward."""
    slot = tl.program_id(0) // heads
    head = tl.cast(tl.program_id(0) % heads, tl.int64)
    _row, tile, start, length, history_end = row_of(slot, order, tiles_per_row, num_rows, rows)
    first = tile * TILE.block_m
    if first < length:
        stop = tl.minimum(first + TILE.block_m, length)
        i = first + tl.arange(0, TILE.block_m)
        q_base = q.pointer + start * q.token_stride + head * q.head_stride
        k_base = k.pointer + start * k.token_stride + head * k.head_stride
        v_base = v.pointer + start * v.token_stride + head * v.head_stride
        g_base = g.pointer + start * g.token_stride + head * g.head_stride
        acc = tl.full((TILE.block_m, TILE.padded_attention), 0.0, tl.float32)
        if stop > history_end:
            own, k_own = _own_slope(q_base, k_base, v_base, g_base, q.token_stride,
                                    k.token_stride, v.token_stride, g.token_stride, first, stop,
                                    i, history_end, half_alpha, tables, head, TILE)  # fmt: skip
            acc = own[:, None] * k_own.to(tl.float32)
        q_tile = load_tile(q_base, first, stop, q.token_stride, TILE.block_m,
                           TILE.attention_dim, TILE.padded_attention, True)  # fmt: skip
        q_tile = (q_tile.to(tl.float32) * half_alpha).to(q_tile.dtype)
        g_tile = load_tile(g_base, first, stop, g.token_stride, TILE.block_m,
                           TILE.hidden_dim, TILE.padded_hidden, True)  # fmt: skip
        time_i, query_time = i, i
        if SPEC.timestamp_mask:
            time_i = load_times(rows.timestamps, start, i, length)
        if tables.time is not None:
            place = query_place(i, history_end, SPEC)
            query_time = load_times(rows.timestamps, start, place, length)
        extra_stop, extra_full, low, full_low, full_high, high = key_range(
            first, stop, history_end, SPEC
        )
        extra_tiles, whole, tiles, main_first, main_last = plan(
            0, extra_stop, extra_full, low, full_low, full_high, high, TILE.block_n
        )
        for n in range(whole + main_last - main_first):
            at = full_tile(n, 0, whole, low, main_first, TILE.block_n)
            acc = _add_keys(acc, q_tile, g_tile, k_base, v_base, k.token_stride, v.token_stride,
                            at, high, i, history_end, time_i, query_time, rows, start, tables,
                            head, SPEC, TILE, False)  # fmt: skip
        for n in range(extra_tiles - whole + main_first + tiles - main_last):
            at, end = masked_tile(n, 0, extra_stop, whole, extra_tiles, low, high, main_first,
                                  main_last, TILE.block_n)  # fmt: skip
            acc = _add_keys(acc, q_tile, g_tile, k_base, v_base, k.token_stride, v.token_stride,
                            at, end, i, history_end, time_i, query_time, rows, start, tables,
                            head, SPEC, TILE, True)  # fmt: skip
        d_base = d_q.pointer + start * d_q.token_stride + head * d_q.head_stride
        store_tile(d_base, first, stop, d_q.token_stride, acc * (2.0 * half_alpha * scale),
                   TILE.block_m, TILE.attention_dim, TILE.padded_attention)  # fmt: skip


@triton.jit
def _add_keys(acc, q_tile, g_tile, k_base, v_base, k_stride, v_stride, first, stop, i, history_end,
              time_i, query_time, rows, start, tables, head, SPEC: tl.constexpr,
              TILE: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    k_tile = load_tile(k_base, first, stop, k_stride, TILE.block_n,
                       TILE.attention_dim, TILE.padded_attention, MASKED)  # fmt: skip
    v_tile = load_tile(v_base, first, stop, v_stride, TILE.block_n,
                       TILE.hidden_dim, TILE.padded_hidden, MASKED)  # fmt: skip
    j = first + tl.arange(0, TILE.block_n)
    time_j = j
    if (SPEC.timestamp_mask & MASKED) | (tables.time is not None):
        time_j = load_times(rows.timestamps, start, j, stop)
    half = tl.dot(q_tile, tl.trans(k_tile), input_precision=TILE.precision)
    if (tables.position is not None) | (tables.time is not None):
        half += half_bias(i[:, None], j[None, :], history_end, query_time[:, None],
                          time_j[None, :], tables, head, SPEC, TILE)  # fmt: skip
    _, slope = silu_and_slope(half, TILE.fast_silu)
    slope *= tl.dot(g_tile, tl.trans(v_tile), input_precision=TILE.precision)
    if MASKED:
        seen = visible(i[:, None], j[None, :], history_end, SPEC, time_i[:, None], time_j[None, :])
        slope = tl.where(seen & (j < stop)[None, :], slope, 0.0)
    return tl.dot(slope.to(k_tile.dtype), k_tile, acc, input_precision=TILE.precision)


@triton.jit
def _own_slope(q_base, k_base, v_base, g_base, q_stride, k_stride, v_stride, g_stride, first, stop,
               i, history_end, half_alpha, tables, head, TILE: tl.constexpr):  # fmt: skip
    """N * ds_ii of targets (0 for others), and k."""
    g_tile = load_tile(g_base, first, stop, g_stride, TILE.block_m,
                       TILE.hidden_dim, TILE.padded_hidden, True)  # fmt: skip
    v_tile = load_tile(v_base, first, stop, v_stride, TILE.block_m,
                       TILE.hidden_dim, TILE.padded_hidden, True)  # fmt: skip
    outer = tl.sum(g_tile.to(tl.float32) * v_tile.to(tl.float32), 1)
    q_tile = load_tile(q_base, first, stop, q_stride, TILE.block_m,
                       TILE.attention_dim, TILE.padded_attention, True)  # fmt: skip
    k_tile = load_tile(k_base, first, stop, k_stride, TILE.block_m,
                       TILE.attention_dim, TILE.padded_attention, True)  # fmt: skip
    half = half_alpha * tl.sum(q_tile.to(tl.float32) * k_tile.to(tl.float32), 1)
    _, slope = silu_and_slope(half + half_own_bias(tables, head, TILE), TILE.fast_silu)
    return tl.where(i >= history_end, slope * outer, 0.0), k_tile
