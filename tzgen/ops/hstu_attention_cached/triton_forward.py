# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs
"""Cached STU attention in Triton: new tokens against cached and new keys, pages read in place.

One program per tile of new tokens and head. Its keys lie in two parts of the row, the cached places
and the new ones; the tiles of `hstu_attention` are cut at the border between them. A tile of a
paged cache is gathered through the page table, token by token, so that pages of any size do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention.triton_configs import SHIPPED, Config, Tuning
from tzgen.ops.hstu_attention.triton_forward import add_keys, add_tile, own_key
from tzgen.ops.hstu_attention.triton_launch import Launch
from tzgen.ops.hstu_attention.triton_mask import full_tile, key_range, masked_tile, plan
from tzgen.ops.hstu_attention.triton_tiles import (
    View,
    load_tile,
    load_times,
    query_place,
    row_of,
    store_tile,
)
from tzgen.ops.hstu_attention_cached.cache import CachedKV


class Held(NamedTuple):
    """A cache as the kernel takes it.

    lengths int64 [B], starts int64 [B]: where a row's tokens begin (contiguous). table int64
    [B, max_pages] or None; page strides in elements. timestamps: of tokens, or of pages in order.
    """

    k: View
    v: View
    lengths: Any
    starts: Any
    table: Any
    max_pages: int
    page_size: int
    k_page: int
    v_page: int
    timestamps: Any


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    cache: CachedKV,
    call: Call,
    *,
    tuning: Tuning = SHIPPED,
) -> Tensor:
    """New tokens [Lq, H, attention_dim] x 2, [Lq, H, hidden_dim] -> [Lq, H, hidden_dim]."""
    out = torch.empty(v.shape, dtype=q.dtype, device=v.device)
    if out.numel() == 0:
        return out
    launch = Launch(q, k, v, offsets, call, tuning)
    held = _held(cache)

    def run(config: Config) -> None:
        order = launch.order(config.block_m)
        _attend_cached[(order.slots * q.size(1),)](
            *launch.views(q, k, v, out),
            held,
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

    # a few candidates a row would leave most of a training tile empty
    fitting = max(16, triton.next_power_of_2(max(1, min(call.max_len, q.size(0)))))
    with torch.cuda.device_of(q):
        config = tuning.choose("forward", launch.shape, run)
        run(replace(config, block_m=min(config.block_m, fitting)))
    return out


def _held(cache: CachedKV) -> Held:
    k, v = (
        x if x.stride(-1) == 1 or x.size(-1) == 1 else x.contiguous() for x in (cache.k, cache.v)
    )
    paged = cache.table is not None
    lengths = cache.lengths.contiguous()
    table = None if cache.table is None else cache.table.contiguous()
    times = None if cache.timestamps is None else cache.timestamps.contiguous()
    return Held(
        View(k, k.stride(-3), k.stride(-2)),
        View(v, v.stride(-3), v.stride(-2)),
        lengths,
        None if paged else lengths.cumsum(0) - lengths,
        table,
        0 if table is None else table.size(1),
        cache.page_size,
        k.stride(0) if paged else 0,
        v.stride(0) if paged else 0,
        times,
    )


@triton.jit
def _attend_cached(q, k, v, out, held, order, tiles_per_row, num_rows, rows, tables,
                   half_alpha, scale, heads, SPEC: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    slot = tl.program_id(0) // heads
    head = tl.cast(tl.program_id(0) % heads, tl.int64)
    row, tile, start, new, history_end = row_of(slot, order, tiles_per_row, num_rows, rows)
    first = tile * TILE.block_m
    if first < new:
        cached = tl.load(held.lengths + row).to(tl.int32)
        history_end += cached
        length = cached + new
        stop = tl.minimum(first + TILE.block_m, new)
        i = cached + first + tl.arange(0, TILE.block_m)
        q_base = q.pointer + start * q.token_stride + head * q.head_stride
        k_base = k.pointer + start * k.token_stride + head * k.head_stride
        v_base = v.pointer + start * v.token_stride + head * v.head_stride
        acc = tl.full((TILE.block_m, TILE.padded_hidden), 0.0, tl.float32)
        if cached + stop > history_end:
            acc = own_key(q_base, k_base, v_base, q.token_stride, k.token_stride, v.token_stride,
                          first, stop, i, history_end, half_alpha, tables, head, TILE)  # fmt: skip
        q_tile = load_tile(q_base, first, stop, q.token_stride, TILE.block_m,
                           TILE.attention_dim, TILE.padded_attention, True)  # fmt: skip
        q_tile = (q_tile.to(tl.float32) * half_alpha).to(q_tile.dtype)
        origin = start - cached  # where place 0 of the row would lie among the new tokens
        time_i, query_time = i, i
        if SPEC.timestamp_mask:
            time_i = load_times(rows.timestamps, origin, i, length)
        if tables.time is not None:
            place = query_place(i, history_end, SPEC)
            query_time = load_times(rows.timestamps, origin, place, length)
        acc = _over_cached(acc, q_tile, held, row, cached, cached + first, cached + stop, i,
                           history_end, time_i, query_time, tables, head, SPEC, TILE)  # fmt: skip
        acc = _over_new(acc, q_tile, k_base - cached * k.token_stride,
                        v_base - cached * v.token_stride, k.token_stride, v.token_stride, cached,
                        cached + first, cached + stop, i, history_end, time_i, query_time, rows,
                        origin, tables, head, SPEC, TILE)  # fmt: skip
        out_base = out.pointer + start * out.token_stride + head * out.head_stride
        store_tile(out_base, first, stop, out.token_stride, acc * scale, TILE.block_m,
                   TILE.hidden_dim, TILE.padded_hidden)  # fmt: skip


@triton.jit
def _over_new(acc, q_tile, k_base, v_base, k_stride, v_stride, cached, first, stop, i, history_end,
              time_i, query_time, rows, origin, tables, head, SPEC: tl.constexpr,
              TILE: tl.constexpr):  # fmt: skip
    """Keys at places from `cached` on."""
    extra_stop, extra_full, low, full_low, full_high, high = key_range(
        first, stop, history_end, SPEC
    )
    low = tl.maximum(low, cached)
    extra_tiles, whole, tiles, main_first, main_last = plan(
        cached, extra_stop, extra_full, low, full_low, full_high, high, TILE.block_n
    )
    for n in range(whole + main_last - main_first):
        at = full_tile(n, cached, whole, low, main_first, TILE.block_n)
        acc = add_keys(acc, q_tile, k_base, v_base, k_stride, v_stride, at, high, i, history_end,
                       time_i, query_time, rows.timestamps, origin, tables, head, SPEC, TILE,
                       False)  # fmt: skip
    for n in range(extra_tiles - whole + main_first + tiles - main_last):
        at, end = masked_tile(n, cached, extra_stop, whole, extra_tiles, low, high, main_first,
                              main_last, TILE.block_n)  # fmt: skip
        acc = add_keys(acc, q_tile, k_base, v_base, k_stride, v_stride, at, end, i, history_end,
                       time_i, query_time, rows.timestamps, origin, tables, head, SPEC, TILE,
                       True)  # fmt: skip
    return acc


@triton.jit
def _over_cached(acc, q_tile, held, row, cached, first, stop, i, history_end, time_i, query_time,
                 tables, head, SPEC: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Keys at places below `cached`."""
    extra_stop, extra_full, low, full_low, full_high, high = key_range(
        first, stop, history_end, SPEC
    )
    extra_stop = tl.minimum(extra_stop, cached)
    high = tl.minimum(high, cached)
    extra_tiles, whole, tiles, main_first, main_last = plan(
        0, extra_stop, extra_full, low, full_low, full_high, high, TILE.block_n
    )
    for n in range(whole + main_last - main_first):
        at = full_tile(n, 0, whole, low, main_first, TILE.block_n)
        acc = _add_cached(acc, q_tile, held, row, at, high, i, history_end, time_i, query_time,
                          tables, head, SPEC, TILE, False)  # fmt: skip
    for n in range(extra_tiles - whole + main_first + tiles - main_last):
        at, end = masked_tile(n, 0, extra_stop, whole, extra_tiles, low, high, main_first,
                              main_last, TILE.block_n)  # fmt: skip
        acc = _add_cached(acc, q_tile, held, row, at, end, i, history_end, time_i, query_time,
                          tables, head, SPEC, TILE, True)  # fmt: skip
    return acc


@triton.jit
def _add_cached(acc, q_tile, held, row, first, stop, i, history_end, time_i, query_time, tables,
                head, SPEC: tl.constexpr, TILE: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    if held.table is None:
        start = tl.load(held.starts + row)
        k_base = held.k.pointer + start * held.k.token_stride + head * held.k.head_stride
        v_base = held.v.pointer + start * held.v.token_stride + head * held.v.head_stride
        return add_keys(acc, q_tile, k_base, v_base, held.k.token_stride, held.v.token_stride,
                        first, stop, i, history_end, time_i, query_time, held.timestamps, start,
                        tables, head, SPEC, TILE, MASKED)  # fmt: skip
    else:
        j = first + tl.arange(0, TILE.block_n)
        inside = j < stop
        page = tl.load(held.table + row * held.max_pages + j // held.page_size, mask=inside,
                       other=0)  # fmt: skip
        place = (j % held.page_size).to(tl.int64)
        k_tile = _gather(held.k, page * held.k_page + place * held.k.token_stride, inside, head,
                         TILE.attention_dim, TILE.padded_attention)  # fmt: skip
        v_tile = _gather(held.v, page * held.v_page + place * held.v.token_stride, inside, head,
                         TILE.hidden_dim, TILE.padded_hidden)  # fmt: skip
        time_j = j
        if (SPEC.timestamp_mask & MASKED) | (tables.time is not None):
            time_j = tl.load(held.timestamps + page * held.page_size + place, mask=inside, other=0)
        return add_tile(acc, q_tile, k_tile, v_tile, i, j, stop, history_end, time_i, query_time,
                        time_j, tables, head, SPEC, TILE, MASKED)  # fmt: skip


@triton.jit
def _gather(view, tokens, inside, head, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """[block_n, PADDED] of tokens at these element offsets; zeros where not `inside`."""
    dims = tl.arange(0, PADDED)
    pointers = view.pointer + head * view.head_stride + tokens[:, None] + dims[None, :]
    return tl.load(pointers, mask=inside[:, None] & (dims < WIDTH)[None, :], other=0.0)
