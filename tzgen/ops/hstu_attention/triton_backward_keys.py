# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs
"""dK and dV of STU attention in Triton: one program per tile of keys and head, over query tiles.

Tiles are [keys, queries], so that both accumulators are products with the tile on the left. The
scale alpha / 2 lies in k, which is loaded once. Targets are keys of themselves only: what the loops
leave in their rows is not stored, row-wise products are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tzgen.ops.hstu_attention.triton_mask import (
    full_tile,
    masked_tile,
    plan,
    query_range,
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
    store_rows,
    store_tile,
)


@triton.jit
def differentiate_keys(q, k, v, g, d_k, d_v, order, tiles_per_row, num_rows, rows, tables,
                       half_alpha, scale, heads, SPEC: tl.constexpr,
                       TILE: tl.constexpr):  # fmt: skip
    """Both gradients of TILE.block_n keys."""
    slot = tl.program_id(0) // heads
    head = tl.cast(tl.program_id(0) % heads, tl.int64)
    _row, tile, start, length, history_end = row_of(slot, order, tiles_per_row, num_rows, rows)
    first = tile * TILE.block_n
    if first < length:
        stop = tl.minimum(first + TILE.block_n, length)
        j = first + tl.arange(0, TILE.block_n)
        q_base = q.pointer + start * q.token_stride + head * q.head_stride
        k_base = k.pointer + start * k.token_stride + head * k.head_stride
        v_base = v.pointer + start * v.token_stride + head * v.head_stride
        g_base = g.pointer + start * g.token_stride + head * g.head_stride
        acc_k = tl.full((TILE.block_n, TILE.padded_attention), 0.0, tl.float32)
        acc_v = tl.full((TILE.block_n, TILE.padded_hidden), 0.0, tl.float32)
        k_out = d_k.pointer + start * d_k.token_stride + head * d_k.head_stride
        v_out = d_v.pointer + start * d_v.token_stride + head * d_v.head_stride
        if first < history_end:
            acc_k, acc_v = _over_queries(
                acc_k, acc_v, q_base, k_base, v_base, g_base, q.token_stride, k.token_stride,
                v.token_stride, g.token_stride, first, stop, j, length, history_end, rows, start,
                tables, head, half_alpha, SPEC, TILE,
            )  # fmt: skip
            acc_k *= 2.0 * half_alpha * scale
            last = tl.minimum(stop, history_end)
            store_tile(k_out, first, last, d_k.token_stride, acc_k, TILE.block_n,
                       TILE.attention_dim, TILE.padded_attention)  # fmt: skip
            store_tile(v_out, first, last, d_v.token_stride, acc_v * scale, TILE.block_n,
                       TILE.hidden_dim, TILE.padded_hidden)  # fmt: skip
        if stop > history_end:
            _own_query(q_base, k_base, v_base, g_base, k_out, v_out, q.token_stride,
                       k.token_stride, v.token_stride, g.token_stride, d_k.token_stride,
                       d_v.token_stride, first, stop, history_end, half_alpha, scale, tables,
                       head, TILE)  # fmt: skip


@triton.jit
def _over_queries(acc_k, acc_v, q_base, k_base, v_base, g_base, q_stride, k_stride, v_stride,
                  g_stride, first, stop, j, length, history_end, rows, start, tables, head,
                  half_alpha, SPEC: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Contextual queries, then the full and the masked tiles of the rest."""
    k_tile = load_tile(k_base, first, stop, k_stride, TILE.block_n,
                       TILE.attention_dim, TILE.padded_attention, True)  # fmt: skip
    k_tile = (k_tile.to(tl.float32) * half_alpha).to(k_tile.dtype)
    v_tile = load_tile(v_base, first, stop, v_stride, TILE.block_n,
                       TILE.hidden_dim, TILE.padded_hidden, True)  # fmt: skip
    time_j = j
    if SPEC.timestamp_mask | (tables.time is not None):
        time_j = load_times(rows.timestamps, start, j, stop)
    context_stop, extra_start, extra_full, low, full_low, full_high, high = query_range(
        first, tl.minimum(stop, history_end), history_end, length, SPEC
    )
    extra_tiles, whole, tiles, main_first, main_last = plan(
        extra_start, length, extra_full, low, full_low, full_high, high, TILE.block_m
    )
    for n in range(whole + main_last - main_first):
        at = full_tile(n, extra_start, whole, low, main_first, TILE.block_m)
        acc_k, acc_v = _add_queries(acc_k, acc_v, k_tile, v_tile, q_base, g_base, q_stride,
                                    g_stride, at, length, j, length, history_end, time_j, rows,
                                    start, tables, head, SPEC, TILE, False)  # fmt: skip
    context_tiles = tl.cdiv(context_stop, TILE.block_m)
    masked = extra_tiles - whole + main_first + tiles - main_last
    for n in range(context_tiles + masked):
        at, end = masked_tile(n - context_tiles, extra_start, length, whole, extra_tiles, low, high,
                              main_first, main_last, TILE.block_m)  # fmt: skip
        at = tl.where(n < context_tiles, n * TILE.block_m, at)
        end = tl.where(n < context_tiles, context_stop, end)
        acc_k, acc_v = _add_queries(acc_k, acc_v, k_tile, v_tile, q_base, g_base, q_stride,
                                    g_stride, at, end, j, length, history_end, time_j, rows,
                                    start, tables, head, SPEC, TILE, True)  # fmt: skip
    return acc_k, acc_v


@triton.jit
def _add_queries(acc_k, acc_v, k_tile, v_tile, q_base, g_base, q_stride, g_stride, first, stop, j,
                 length, history_end, time_j, rows, start, tables, head, SPEC: tl.constexpr,
                 TILE: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    q_tile = load_tile(q_base, first, stop, q_stride, TILE.block_m,
                       TILE.attention_dim, TILE.padded_attention, MASKED)  # fmt: skip
    g_tile = load_tile(g_base, first, stop, g_stride, TILE.block_m,
                       TILE.hidden_dim, TILE.padded_hidden, MASKED)  # fmt: skip
    i = first + tl.arange(0, TILE.block_m)
    time_i, query_time = i, i
    if SPEC.timestamp_mask & MASKED:
        time_i = load_times(rows.timestamps, start, i, length)
    if tables.time is not None:
        place = query_place(i, history_end, SPEC)
        query_time = load_times(rows.timestamps, start, place, length)
    half = tl.dot(k_tile, tl.trans(q_tile), input_precision=TILE.precision)
    if (tables.position is not None) | (tables.time is not None):
        half += half_bias(i[None, :], j[:, None], history_end, query_time[None, :],
                          time_j[:, None], tables, head, SPEC, TILE)  # fmt: skip
    weights, slope = silu_and_slope(half, TILE.fast_silu)
    slope *= tl.dot(v_tile, tl.trans(g_tile), input_precision=TILE.precision)
    if MASKED:
        seen = visible(i[None, :], j[:, None], history_end, SPEC, time_i[None, :], time_j[:, None])
        seen = seen & (i < stop)[None, :]
        weights = tl.where(seen, weights, 0.0)
        slope = tl.where(seen, slope, 0.0)
    acc_v = tl.dot(weights.to(g_tile.dtype), g_tile, acc_v, input_precision=TILE.precision)
    acc_k = tl.dot(slope.to(q_tile.dtype), q_tile, acc_k, input_precision=TILE.precision)
    return acc_k, acc_v


@triton.jit
def _own_query(q_base, k_base, v_base, g_base, k_out, v_out, q_stride, k_stride, v_stride, g_stride,
               k_out_stride, v_out_stride, first, stop, history_end, half_alpha, scale, tables,
               head, TILE: tl.constexpr):  # fmt: skip
    """dK and dV of targets, which only their own query sees."""
    q_tile = load_tile(q_base, first, stop, q_stride, TILE.block_n,
                       TILE.attention_dim, TILE.padded_attention, True)  # fmt: skip
    k_tile = load_tile(k_base, first, stop, k_stride, TILE.block_n,
                       TILE.attention_dim, TILE.padded_attention, True)  # fmt: skip
    half = half_alpha * tl.sum(q_tile.to(tl.float32) * k_tile.to(tl.float32), 1)
    weights, slope = silu_and_slope(half + half_own_bias(tables, head, TILE), TILE.fast_silu)
    g_tile = load_tile(g_base, first, stop, g_stride, TILE.block_n,
                       TILE.hidden_dim, TILE.padded_hidden, True)  # fmt: skip
    v_tile = load_tile(v_base, first, stop, v_stride, TILE.block_n,
                       TILE.hidden_dim, TILE.padded_hidden, True)  # fmt: skip
    slope *= 2.0 * half_alpha * scale * tl.sum(g_tile.to(tl.float32) * v_tile.to(tl.float32), 1)
    weights *= scale
    rows = first + tl.arange(0, TILE.block_n)
    own = ((rows >= history_end) & (rows < stop))[:, None]
    store_rows(k_out, first, own, k_out_stride, slope[:, None] * q_tile.to(tl.float32),
               TILE.block_n, TILE.attention_dim, TILE.padded_attention)  # fmt: skip
    store_rows(v_out, first, own, v_out_stride, weights[:, None] * g_tile.to(tl.float32),
               TILE.block_n, TILE.hidden_dim, TILE.padded_hidden)  # fmt: skip
