# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs
"""Gradients of the two bias tables in Triton, without atomics: sums of ds by column.

A program takes every GROUPS-th tile of queries of one head, recomputes ds and sums it by column in
an order of its own; the host adds the programs' sums. The same inputs give the same bits.

Summing a tile by column is a product of two one-hot matrices, one for each digit of the column in
base WIDTH: hist[high, low] = sum_e ds_e [high(e) = high] [low(e) = low]. It costs 2 * WIDTH
comparisons an element instead of one for each column. A tile touches at most block_m + block_n - 1
columns of the position table, beside each other; time columns are taken 256 at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention.triton_configs import Config
from tzgen.ops.hstu_attention.triton_launch import Launch
from tzgen.ops.hstu_attention.triton_mask import key_range, visible
from tzgen.ops.hstu_attention.triton_tiles import (
    half_bias,
    half_own_bias,
    load_tile,
    load_times,
    position_column,
    query_place,
    row_of,
    silu_and_slope,
    time_column,
)

WIDTH = tl.constexpr(16)
PARTS = tl.constexpr(4)  # warps
BINS = 256  # WIDTH * WIDTH
GROUPS = 64  # programs of one head: a constant, so that sums do not depend on the device
CONFIG = Config(16, 16, 4, 1)  # larger tiles' one-hot matrices do not fit the registers


def table_gradients(
    launch: Launch | None, call: Call, q: Tensor, k: Tensor, v: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """d_position, d_time: float32 in the tables' shapes, (0, 0) where there is none."""
    tables = (call.position_bias, call.time_bias)
    if launch is None or tables == (None, None):
        shapes = [(0, 0) if table is None else tuple(table.shape) for table in tables]
        d_position, d_time = (torch.zeros(shape, device=q.device) for shape in shapes)
        return d_position, d_time
    order = launch.order(CONFIG.block_m)
    columns = [0 if table is None else table.size(1) for table in tables]
    heads, groups = q.size(1), min(GROUPS, max(order.slots, 1))
    # position columns are added to one tile after another; time columns are written once
    position = torch.zeros(groups, heads, columns[0], device=q.device)
    time = torch.zeros(groups, heads, columns[1], device=q.device)
    own = torch.zeros(groups, heads, device=q.device)
    _sum_by_column[(groups, heads, max(1, triton.cdiv(columns[1], BINS)))](
        *launch.views(q, k, v, grad),
        (position, time, own),
        order.codes,
        order.tiles_per_row,
        order.num_rows,
        order.slots,
        launch.rows,
        launch.tables,
        call.alpha / 2,
        SPEC=call.mask,
        TILE=launch.tile(CONFIG),
        **CONFIG.options,
    )
    out = []
    for table, sums, middle in (
        (call.position_bias, position, (columns[0] - 1) // 2),
        (call.time_bias, time, 0),
    ):
        if table is None:
            out.append(torch.zeros(0, 0, device=q.device))
            continue
        total = sums.sum(0)
        total[:, middle] += own.sum(0)
        total = total.sum(0, keepdim=True) if table.size(0) == 1 else total
        out.append(total / call.divisor)
    return out[0], out[1]


@triton.jit
def _sum_by_column(q, k, v, g, sums, order, tiles_per_row, num_rows, slots, rows, tables,
                   half_alpha, SPEC: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    group, chunk = tl.program_id(0), tl.program_id(2)
    head = tl.cast(tl.program_id(1), tl.int64)
    place = group * tl.num_programs(1) + head
    time_sums = tl.full((PARTS, WIDTH, WIDTH), 0.0, tl.float32)
    own_sum = tl.sum(tl.full((WIDTH,), 0.0, tl.float32), 0)
    for slot in range(group, slots, tl.num_programs(0)):
        _row, tile, start, length, history_end = row_of(slot, order, tiles_per_row, num_rows, rows)
        first = tile * TILE.block_m
        if first < length:
            stop = tl.minimum(first + TILE.block_m, length)
            q_base = q.pointer + start * q.token_stride + head * q.head_stride
            k_base = k.pointer + start * k.token_stride + head * k.head_stride
            v_base = v.pointer + start * v.token_stride + head * v.head_stride
            g_base = g.pointer + start * g.token_stride + head * g.head_stride
            extra_stop, _extra_full, low, _full_low, _full_high, high = key_range(
                first, stop, history_end, SPEC
            )
            extra_tiles = tl.cdiv(extra_stop, TILE.block_n)
            tiles = tl.cdiv(tl.maximum(high - low, 0), TILE.block_n)
            for n in range(extra_tiles + tiles):
                at = tl.where(n < extra_tiles, n, n - extra_tiles) * TILE.block_n
                at += tl.where(n < extra_tiles, 0, low)
                end = tl.where(n < extra_tiles, extra_stop, high)
                slope = _slope(q_base, k_base, v_base, g_base, q.token_stride, k.token_stride,
                               v.token_stride, g.token_stride, first, stop, at, end, length,
                               history_end, rows, start, tables, head, half_alpha, SPEC,
                               TILE)  # fmt: skip
                if tables.time is not None:
                    column = _time_columns(first, at, length, history_end, rows, start, end, SPEC,
                                           TILE) - chunk * (WIDTH * WIDTH)  # fmt: skip
                    time_sums += _histogram(slope, column, TILE)
                if tables.position is not None:
                    _add_positions(sums[0] + place * TILE.position_columns, slope, first, at,
                                   history_end, chunk == 0, TILE)  # fmt: skip
            if stop > history_end:
                own_sum += _own_slopes(q_base, k_base, v_base, g_base, q.token_stride,
                                       k.token_stride, v.token_stride, g.token_stride, first,
                                       stop, history_end, tables, head, half_alpha,
                                       TILE)  # fmt: skip
    if tables.time is not None:
        digits = tl.arange(0, WIDTH)
        column = chunk * (WIDTH * WIDTH) + digits[:, None] * WIDTH + digits[None, :]
        tl.store(sums[1] + place * TILE.time_columns + column, tl.sum(time_sums, 0),
                 mask=column < TILE.time_columns)  # fmt: skip
    if chunk == 0:
        tl.store(sums[2] + place, own_sum)


@triton.jit
def _slope(q_base, k_base, v_base, g_base, q_stride, k_stride, v_stride, g_stride, first, stop, at,
           end, length, history_end, rows, start, tables, head, half_alpha, SPEC: tl.constexpr,
           TILE: tl.constexpr):  # fmt: skip
    """N * ds of queries from `first` and keys from `at`, where both are events; else 0."""
    q_tile = load_tile(q_base, first, stop, q_stride, TILE.block_m,
                       TILE.attention_dim, TILE.padded_attention, True)  # fmt: skip
    q_tile = (q_tile.to(tl.float32) * half_alpha).to(q_tile.dtype)
    k_tile = load_tile(k_base, at, end, k_stride, TILE.block_n,
                       TILE.attention_dim, TILE.padded_attention, True)  # fmt: skip
    half = tl.dot(q_tile, tl.trans(k_tile), input_precision=TILE.precision)
    i = first + tl.arange(0, TILE.block_m)
    j = at + tl.arange(0, TILE.block_n)
    time_i, query_time, time_j = i, i, j
    if SPEC.timestamp_mask | (tables.time is not None):
        time_i = load_times(rows.timestamps, start, i, length)
        time_j = load_times(rows.timestamps, start, j, end)
    if tables.time is not None:
        place = query_place(i, history_end, SPEC)
        query_time = load_times(rows.timestamps, start, place, length)
    half += half_bias(i[:, None], j[None, :], history_end, query_time[:, None],
                      time_j[None, :], tables, head, SPEC, TILE)  # fmt: skip
    _, slope = silu_and_slope(half, TILE.fast_silu)
    g_tile = load_tile(g_base, first, stop, g_stride, TILE.block_m,
                       TILE.hidden_dim, TILE.padded_hidden, True)  # fmt: skip
    v_tile = load_tile(v_base, at, end, v_stride, TILE.block_n,
                       TILE.hidden_dim, TILE.padded_hidden, True)  # fmt: skip
    slope *= tl.dot(g_tile, tl.trans(v_tile), input_precision=TILE.precision)
    seen = visible(i[:, None], j[None, :], history_end, SPEC, time_i[:, None], time_j[None, :])
    seen = seen & (i < stop)[:, None] & (j < end)[None, :]
    events = (i >= SPEC.contextual_len)[:, None] & (j >= SPEC.contextual_len)[None, :]
    return tl.where(seen & events, slope, 0.0)


@triton.jit
def _time_columns(first, at, length, history_end, rows, start, end, SPEC: tl.constexpr,
                  TILE: tl.constexpr):  # fmt: skip
    i = first + tl.arange(0, TILE.block_m)
    j = at + tl.arange(0, TILE.block_n)
    query_time = load_times(rows.timestamps, start, query_place(i, history_end, SPEC), length)
    time_j = load_times(rows.timestamps, start, j, end)
    return time_column(query_time[:, None], time_j[None, :], TILE.time_columns, TILE.time_divisor)


@triton.jit
def _add_positions(sums, slope, first, at, history_end, mine, TILE: tl.constexpr):
    """Add a tile to the program's row of columns; `mine` where no other program has that row."""
    i = first + tl.arange(0, TILE.block_m)
    j = at + tl.arange(0, TILE.block_n)
    column = position_column(i[:, None], j[None, :], history_end, TILE.position_columns)
    lowest = position_column(first + TILE.block_m - 1, at, history_end, TILE.position_columns)
    hist = tl.sum(_histogram(slope, column - lowest, TILE), 0)
    digits = tl.arange(0, WIDTH)
    bins = digits[:, None] * WIDTH + digits[None, :]
    touched = (bins < TILE.block_m + TILE.block_n) & (lowest + bins < TILE.position_columns)
    touched = touched & mine
    pointers = sums + lowest + bins
    # what another thread of this program stored for the last tile must be seen by these loads
    tl.debug_barrier()
    before = tl.load(pointers, mask=touched, other=0.0)
    tl.store(pointers, before + hist, mask=touched)


@triton.jit
def _histogram(values, column, TILE: tl.constexpr):
    """Sums of values [M, N] by column in [0, WIDTH^2), as PARTS of [WIDTH, WIDTH].

    Columns outside fall away. In parts, because warps share the products of a batch, but not the
    summed dimension of one. The ones are exact in tf32; the values are as good as their dtype.
    """
    size: tl.constexpr = TILE.block_m * TILE.block_n // PARTS
    digits = tl.arange(0, WIDTH)
    across = tl.reshape(column, (PARTS, 1, size))
    down = tl.reshape(column, (PARTS, size, 1))
    high = (across >= 0) & (across // WIDTH == digits[None, :, None])
    left = tl.where(high, tl.reshape(values, (PARTS, 1, size)), 0.0)
    right = tl.where(down % WIDTH == digits[None, None, :], 1.0, 0.0)
    if TILE.half:
        return tl.dot(left, right, input_precision="tf32")
    else:
        return tl.dot(left, right, input_precision="tf32x3")


@triton.jit
def _own_slopes(q_base, k_base, v_base, g_base, q_stride, k_stride, v_stride, g_stride, first, stop,
                history_end, tables, head, half_alpha, TILE: tl.constexpr):  # fmt: skip
    """Sum of N * ds_ii over the targets of a tile of queries: distance 0, time 0."""
    q_tile = load_tile(q_base, first, stop, q_stride, TILE.block_m,
                       TILE.attention_dim, TILE.padded_attention, True)  # fmt: skip
    k_tile = load_tile(k_base, first, stop, k_stride, TILE.block_m,
                       TILE.attention_dim, TILE.padded_attention, True)  # fmt: skip
    half = half_alpha * tl.sum(q_tile.to(tl.float32) * k_tile.to(tl.float32), 1)
    _, slope = silu_and_slope(half + half_own_bias(tables, head, TILE), TILE.fast_silu)
    g_tile = load_tile(g_base, first, stop, g_stride, TILE.block_m,
                       TILE.hidden_dim, TILE.padded_hidden, True)  # fmt: skip
    v_tile = load_tile(v_base, first, stop, v_stride, TILE.block_m,
                       TILE.hidden_dim, TILE.padded_hidden, True)  # fmt: skip
    slope *= tl.sum(g_tile.to(tl.float32) * v_tile.to(tl.float32), 1)
    target = first + tl.arange(0, TILE.block_m) >= history_end
    return tl.sum(tl.where(target, slope, 0.0), 0)
