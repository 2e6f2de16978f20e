# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs
"""Forward of STU attention in Triton: one program per tile of queries and head.

Fused: q k^T, relative bias, SiLU, mask, the product with v, 1 / N. Key tiles that every query sees
run without a mask, the others after them; what nobody sees is not visited (`triton_mask.py`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzgen.ops.hstu_attention.call import Call
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
    silu,
    store_tile,
)


def forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, call: Call, *, tuning: Tuning = SHIPPED
) -> Tensor:
    """[L, H, attention_dim] x 2, [L, H, hidden_dim] -> [L, H, hidden_dim]."""
    out = torch.empty(v.shape, dtype=q.dtype, device=v.device)
    if out.numel() == 0:
        return out
    launch = Launch(q, k, v, offsets, call, tuning)

    def run(config: Config) -> None:
        order = launch.order(config.block_m)
        _attend[(order.slots * q.size(1),)](
            *launch.views(q, k, v, out),
            order.codes,
            order.tiles_per_row,
            order.num_rows,
            launch.rows,
            launch.tables,
            call.alpha / 2,
            1.0 / call.divisor,
            q.size(1),
            SPEC=call.mask,
            TILE=launch.tile(config),
            **config.options,
        )

    with torch.cuda.device_of(q):
        run(tuning.choose("forward", launch.shape, run))
    return out


@triton.jit
def _attend(q, k, v, out, order, tiles_per_row, num_rows, rows, tables, half_alpha, scale, heads,
            SPEC: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
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
        acc = tl.full((TILE.block_m, TILE.padded_hidden), 0.0, tl.float32)
        if stop > history_end:
            acc = own_key(q_base, k_base, v_base, q.token_stride, k.token_stride, v.token_stride,
                          first, stop, i, history_end, half_alpha, tables, head, TILE)  # fmt: skip
        q_tile = load_tile(q_base, first, stop, q.token_stride, TILE.block_m,
                           TILE.attention_dim, TILE.padded_attention, True)  # fmt: skip
        q_tile = (q_tile.to(tl.float32) * half_alpha).to(q_tile.dtype)
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
            acc = add_keys(acc, q_tile, k_base, v_base, k.token_stride, v.token_stride, at, high,
                           i, history_end, time_i, query_time, rows.timestamps, start, tables,
                           head, SPEC, TILE, False)  # fmt: skip
        for n in range(extra_tiles - whole + main_first + tiles - main_last):
            at, end = masked_tile(n, 0, extra_stop, whole, extra_tiles, low, high, main_first,
                                  main_last, TILE.block_n)  # fmt: skip
            acc = add_keys(acc, q_tile, k_base, v_base, k.token_stride, v.token_stride, at, end,
                           i, history_end, time_i, query_time, rows.timestamps, start, tables,
                           head, SPEC, TILE, True)  # fmt: skip
        out_base = out.pointer + start * out.token_stride + head * out.head_stride
        store_tile(out_base, first, stop, out.token_stride, acc * scale, TILE.block_m,
                   TILE.hidden_dim, TILE.padded_hidden)  # fmt: skip


@triton.jit
def add_keys(acc, q_tile, k_base, v_base, k_stride, v_stride, first, stop, i, history_end, time_i,
             query_time, timestamps, start, tables, head, SPEC: tl.constexpr, TILE: tl.constexpr,
             MASKED: tl.constexpr):  # fmt: skip
    """acc + what queries i take from the keys of one tile."""
    k_tile = load_tile(k_base, first, stop, k_stride, TILE.block_n,
                       TILE.attention_dim, TILE.padded_attention, MASKED)  # fmt: skip
    v_tile = load_tile(v_base, first, stop, v_stride, TILE.block_n,
                       TILE.hidden_dim, TILE.padded_hidden, MASKED)  # fmt: skip
    j = first + tl.arange(0, TILE.block_n)
    time_j = j
    if (SPEC.timestamp_mask & MASKED) | (tables.time is not None):
        time_j = load_times(timestamps, start, j, stop)
    return add_tile(acc, q_tile, k_tile, v_tile, i, j, stop, history_end, time_i, query_time,
                    time_j, tables, head, SPEC, TILE, MASKED)  # fmt: skip


@triton.jit
def add_tile(acc, q_tile, k_tile, v_tile, i, j, stop, history_end, time_i, query_time, time_j,
             tables, head, SPEC: tl.constexpr, TILE: tl.constexpr,
             MASKED: tl.constexpr):  # fmt: skip
    """The same for keys at places j that are loaded already."""
    half = tl.dot(q_tile, tl.trans(k_tile), input_precision=TILE.precision)
    if (tables.position is not None) | (tables.time is not None):
        half += half_bias(i[:, None], j[None, :], history_end, query_time[:, None],
                          time_j[None, :], tables, head, SPEC, TILE)  # fmt: skip
    weights = silu(half, TILE.fast_silu)
    if MASKED:
        seen = visible(i[:, None], j[None, :], history_end, SPEC, time_i[:, None], time_j[None, :])
        weights = tl.where(seen & (j < stop)[None, :], weights, 0.0)
    return tl.dot(weights.to(v_tile.dtype), v_tile, acc, input_precision=TILE.precision)


@triton.jit
def own_key(q_base, k_base, v_base, q_stride, k_stride, v_stride, first, stop, i, history_end,
             half_alpha, tables, head, TILE: tl.constexpr):  # fmt: skip
    """What targets take from themselves: a row-wise product instead of a diagonal tile.

    It comes before the loops and loads its own q: its tiles would cost their registers.
    """
    q_tile = load_tile(q_base, first, stop, q_stride, TILE.block_m,
                       TILE.attention_dim, TILE.padded_attention, True)  # fmt: skip
    k_tile = load_tile(k_base, first, stop, k_stride, TILE.block_m,
                       TILE.attention_dim, TILE.padded_attention, True)  # fmt: skip
    v_tile = load_tile(v_base, first, stop, v_stride, TILE.block_m,
                       TILE.hidden_dim, TILE.padded_hidden, True)  # fmt: skip
    half = half_alpha * tl.sum(q_tile.to(tl.float32) * k_tile.to(tl.float32), 1)
    half += half_own_bias(tables, head, TILE)
    weights = silu(half, TILE.fast_silu)
    return tl.where((i >= history_end)[:, None], weights[:, None] * v_tile.to(tl.float32), 0.0)
