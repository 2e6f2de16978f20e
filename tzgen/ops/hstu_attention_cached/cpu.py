# SPDX-License-Identifier: Apache-2.0
"""Cached STU attention in plain PyTorch: one row at a time, all its heads in one product.

The new queries of a row are cut into `BLOCK`s against the key spans they can see (`mask.blocks`);
spans are cut where cache and new tokens meet. Keys of a contiguous cache, and of pages that follow
each other in the pool, are read where they lie; scattered pages are gathered, at most `KEYS` tokens
at a time. Arithmetic is float32, or float64 for float64 inputs. Made for CPUs; runs on any device.

H heads, R queries of a block, C keys of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tzgen.ops.hstu_attention import bias as rab
from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention.mask import Block, blocks, visible
from tzgen.ops.hstu_attention_cached.cache import CachedKV

BLOCK = 256  # queries of a block
KEYS = 1024  # keys of a span: bounds the tile to H * BLOCK * KEYS numbers


@dataclass(frozen=True)
class Row:
    """One row: `count` new tokens from `start`, after `cached` tokens.

    Token t of the cache is token `first[t // size] + t % size` of the flat cache.
    """

    start: int
    count: int
    cached: int
    targets: int
    first: list[int]
    size: int

    @property
    def length(self) -> int:
        return self.cached + self.count

    def runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Slots [first, last) that hold the cached tokens [start, stop), neighbours merged."""
        out: list[tuple[int, int]] = []
        while start < stop:
            end = min((start // self.size + 1) * self.size, stop)
            slot = self.first[start // self.size] + start % self.size
            if out and out[-1][1] == slot:
                out[-1] = (out[-1][0], slot + end - start)
            else:
                out.append((slot, slot + end - start))
            start = end
        return out


@dataclass(frozen=True)
class Piece:
    """Keys [start, stop) of a row: all cached or all new. `full`: every query sees every key."""

    start: int
    stop: int
    full: bool
    k: Tensor  # [C, H, attention_dim]
    v: Tensor  # [C, H, hidden_dim]
    times: Tensor | None  # int64 [C]


def forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, cache: CachedKV, call: Call
) -> Tensor:
    """q, k [Lq, H, attention_dim], v [Lq, H, hidden_dim] -> [Lq, H, hidden_dim]."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    out = torch.empty(v.shape, dtype=q.dtype, device=v.device)
    if cache.table is not None:  # one slot a token
        times = None if cache.timestamps is None else cache.timestamps.flatten(0, 1)
        flat_k, flat_v = cache.k.flatten(0, 1), cache.v.flatten(0, 1)
        flat = replace(cache, k=flat_k, v=flat_v, timestamps=times)
    else:
        flat = cache
    for row in host_rows(offsets, cache, call.num_targets):
        for block in _blocks(row, call):
            first = row.start - row.cached
            at = slice(first + block.start, first + block.stop)
            q_HRd = (q[at].to(dtype) * call.alpha).transpose(0, 1)
            total = q_HRd.new_zeros(v.size(1), block.stop - block.start, v.size(2))
            for piece in _pieces(row, block, k, v, flat, call):
                scores = torch.bmm(q_HRd, piece.k.to(dtype).permute(1, 2, 0))
                _add_bias(scores, row, block, piece, call)
                weights = F.silu(scores, inplace=True)
                if not piece.full:
                    weights.mul_(_seen(row, block, piece, call))
                total.baddbmm_(weights, piece.v.to(dtype).transpose(0, 1))
            if block.own_key:
                own = _own_scores(q_HRd, k[at].to(dtype).transpose(0, 1), call)
                total.add_(F.silu(own) * v[at].to(dtype).transpose(0, 1))
            out[at] = total.div_(call.divisor).transpose(0, 1)
    return out


def host_rows(offsets: Tensor, cache: CachedKV, num_targets: Tensor | None) -> list[Row]:
    """The rows that have new tokens, their sizes checked against the tensors they index."""
    bounds, lengths = offsets.tolist(), cache.lengths.tolist()
    targets = [0] * len(lengths) if num_targets is None else num_targets.tolist()
    tables = None if cache.table is None else cache.table.tolist()
    size = max(cache.page_size, 1) if tables is not None else max(cache.k.size(0), 1)
    out, before = [], 0
    for row, (cached, count) in enumerate(zip(lengths, targets, strict=True)):
        new = bounds[row + 1] - bounds[row]
        if not 0 <= count <= new:
            raise ValueError(
                f"row {row}: {count} targets among {new} new tokens; targets are never cached"
            )
        if tables is None:
            first, room = [before], cache.k.size(0) - before
        else:
            used = -(-cached // size)
            pages = tables[row][:used]
            inside = all(0 <= page < cache.k.size(0) for page in pages)
            first, room = [page * size for page in pages], len(pages) * size if inside else 0
        if cached < 0 or cached > room:
            raise ValueError(
                f"row {row}: lengths says {cached} cached tokens, but the cache holds {room} for it"
            )
        before += cached
        if new > 0:
            # a contiguous row is one piece that starts at its first token
            width = size if tables is not None else max(cached, 1)
            out.append(Row(bounds[row], new, cached, count, first, width))
    return out


def _blocks(row: Row, call: Call) -> Iterator[Block]:
    """Blocks of the whole row, cut to the new queries; their spans still hold."""
    for block in blocks(row.length, row.targets, call.mask, BLOCK, KEYS):
        start, stop = max(block.start, row.cached), min(block.stop, row.length)
        if start < stop:
            yield replace(block, start=start, stop=stop)


def _pieces(
    row: Row, block: Block, k: Tensor, v: Tensor, flat: CachedKV, call: Call
) -> Iterator[Piece]:
    """The block's spans as keys and values, cut where the cache ends."""
    for span in block.spans:
        stop = min(span.stop, row.cached)
        if span.start < stop:
            runs = row.runs(span.start, stop)
            held = (_slots(x, runs) for x in (flat.k, flat.v, flat.timestamps))
            keys, values, times = held
            assert keys is not None and values is not None, "only timestamps may be absent"
            yield Piece(span.start, stop, span.full, keys, values, times)
        start, stop = max(span.start, row.cached), min(span.stop, row.length)
        if start < stop:
            at = slice(row.start + start - row.cached, row.start + stop - row.cached)
            times = None if call.timestamps is None else call.timestamps[at]
            yield Piece(start, stop, span.full, k[at], v[at], times)


def _slots(x: Tensor | None, runs: list[tuple[int, int]]) -> Tensor | None:
    """A view where the tokens lie in one run, else a copy of these tokens alone."""
    if x is None:
        return None
    parts = [x[first:last] for first, last in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _places(row: Row, block: Block, piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
    """i [R, 1], j [1, C] and the history's end (a scalar), as `visible` and the bias take them."""
    device = piece.k.device
    i = torch.arange(block.start, block.stop, device=device)[:, None]
    j = torch.arange(piece.start, piece.stop, device=device)[None, :]
    return i, j, torch.tensor(row.length - row.targets, device=device)


def _seen(row: Row, block: Block, piece: Piece, call: Call) -> Tensor:
    """1 where a query sees a key, else 0: [R, C] in the math dtype."""
    i, j, end = _places(row, block, piece)
    time_i = time_j = None
    if call.timestamps is not None and piece.times is not None:
        first = row.start - row.cached
        time_i = call.timestamps[first + block.start : first + block.stop, None]
        time_j = piece.times[None, :]
    dtype = torch.promote_types(piece.k.dtype, torch.float32)
    return visible(i, j, end, call.mask, time_i, time_j).to(dtype)


def _add_bias(scores: Tensor, row: Row, block: Block, piece: Piece, call: Call) -> None:
    """Add rab to [H, R, C] in place."""
    if call.position_bias is None and call.time_bias is None:
        return
    i, j, end = _places(row, block, piece)
    contextual = call.mask.contextual_len
    if call.position_bias is not None:
        column = rab.position_index(i, j, end, contextual, call.position_bias.size(1))
        scores += rab.padded_table(call.position_bias.to(scores.dtype))[:, column]
    if call.time_bias is not None and call.timestamps is not None and piece.times is not None:
        # the query's time is its own or that of the event after it, which is new as well
        place = rab.query_place(i[:, 0], end, call.mask.append_stable)
        query_time = call.timestamps[place + (row.start - row.cached), None]
        column = rab.time_index(
            i,
            j,
            query_time,
            piece.times[None, :],
            contextual,
            call.time_bias.size(1),
            call.time_bias_divisor,
        )
        scores += rab.padded_table(call.time_bias.to(scores.dtype))[:, column]


def _own_scores(q_HRd: Tensor, k_HRd: Tensor, call: Call) -> Tensor:
    """q_i . k_i of targets, with the bias of distance and time zero: [H, R, 1]."""
    scores = (q_HRd * k_HRd).sum(-1, keepdim=True)
    if call.position_bias is not None:
        middle = (call.position_bias.size(1) - 1) // 2
        scores += call.position_bias[:, middle].to(scores.dtype).view(-1, 1, 1)
    if call.time_bias is not None:
        scores += call.time_bias[:, 0].to(scores.dtype).view(-1, 1, 1)
    return scores
