# SPDX-License-Identifier: Apache-2.0
"""STU attention in plain PyTorch without a [B, H, N, N] tensor, forward and backward.

There is no softmax, so key ranges simply add up. Rows of at most `SHORT` tokens are sorted by
length and computed together, padded to the longest of their group; longer rows are cut into
`BLOCK`-row blocks against the key spans they can see (`mask.blocks`), so that invisible tiles cost
nothing and fully visible ones need no mask. Backward recomputes the scores: kept are q, k and v.
Arithmetic is float32, or float64 for float64 inputs. Made for CPUs; runs on any device.

G groups of rows, H heads, n tokens of the (padded) row, b = G * H.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tzgen.ops.hstu_attention import bias as rab
from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention.mask import Block, Span, blocks, visible

SHORT = 256  # longest row that is computed together with others
BLOCK = 256  # queries of a block of a long row
KEYS = 1024  # keys of a span: bounds the tile to H * BLOCK * KEYS numbers
GROUP_BYTES = 1 << 20  # score bytes of one group of short rows: about an L2 cache


@dataclass(frozen=True)
class Rows:
    """Rows that are computed together: G of them, padded to n tokens by repeating the last one."""

    start: int  # packed token of place 0
    source: Tensor  # int64 [G * n]: packed token of each padded place
    keep: Tensor | None  # int64: padded places that hold a token; None when nothing is padded
    group: int
    length: int
    history_end: Tensor  # int64 [G, 1, 1]
    blocks: list[Block]


@dataclass(frozen=True)
class Tile:
    """Queries x keys of `Rows`: which pairs count, and their columns in the bias tables."""

    seen: Tensor | None  # math dtype [G, 1, R, C]; None = all
    position: Tensor | None  # int64 [G or 1, R, C]
    time: Tensor | None  # int64 [G, R, C]


class _Scratch:
    """Buffers used again by every group and block: fresh pages cost more than the arithmetic."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._flat: dict[str, Tensor] = {}
        self._dtype, self._device = dtype, device

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uninitialised contiguous memory, valid until the same name is taken again."""
        count = math.prod(shape)
        if name not in self._flat or self._flat[name].numel() < count:
            self._flat[name] = torch.empty(count, dtype=self._dtype, device=self._device)
        return self._flat[name][:count].view(shape)

    def gather(self, name: str, x: Tensor, rows: Rows) -> Tensor:
        """Packed [L, H, d] -> contiguous [G * H, n, d]."""
        if rows.group == 1:
            source = x[rows.start : rows.start + rows.length][None]
        else:
            source = x.index_select(0, rows.source).unflatten(0, (rows.group, rows.length))
        out = self.take(name, (rows.group, x.size(1), rows.length, x.size(2)))
        return out.copy_(source.transpose(1, 2)).flatten(0, 1)


def forward(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, call: Call) -> Tensor:
    """[L, H, attention_dim] x 2, [L, H, hidden_dim] -> [L, H, hidden_dim]."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    scratch = _Scratch(dtype, q.device)
    out = torch.empty(v.shape, dtype=q.dtype, device=v.device)
    for rows in _plan(offsets, call, heads=q.size(1)):
        q_bnd, k_bnd, v_bnd = (scratch.gather(*x, rows) for x in (("q", q), ("k", k), ("v", v)))
        q_bnd.mul_(call.alpha)
        out_bnd = scratch.take("out", v_bnd.shape)
        for block in rows.blocks:
            at = slice(block.start, block.stop)
            total = scratch.take("total", v_bnd[:, at].shape).zero_()
            for span in block.spans:
                tile = _tile(rows, block, span, call, dtype)
                keys = slice(span.start, span.stop)
                scores = _scores(q_bnd[:, at], k_bnd[:, keys], tile, rows, call, scratch)
                weights = _mask(F.silu(scores, inplace=True), tile, rows)
                total.baddbmm_(weights, v_bnd[:, keys])
            if block.own_key:
                own = _own_scores(q_bnd[:, at], k_bnd[:, at], rows, call)
                total.add_(F.silu(own) * v_bnd[:, at])
            out_bnd[:, at] = total
        _scatter(out_bnd.div_(call.divisor), rows, out)
    return out


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, call: Call
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and of the two bias tables (empty where there is no table)."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    scratch = _Scratch(dtype, q.device)
    # not empty_like: that keeps the strides of a view into uvqk
    d_q, d_k, d_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    tables = _TableGradients(call, q.size(1), dtype, q.device)
    for rows in _plan(offsets, call, heads=q.size(1)):
        q_bnd, k_bnd, v_bnd, g_bnd = (
            scratch.gather(*x, rows) for x in (("q", q), ("k", k), ("v", v), ("g", grad))
        )
        if rows.keep is not None:  # a padded place repeats a token; it must not be counted again
            g_bnd.mul_(_kept(rows, g_bnd))
        q_bnd.mul_(call.alpha)
        g_bnd.div_(call.divisor)
        dq_bnd = scratch.take("dq", q_bnd.shape)
        dk_bnd = scratch.take("dk", k_bnd.shape).zero_()
        dv_bnd = scratch.take("dv", v_bnd.shape).zero_()
        for block in rows.blocks:
            at = slice(block.start, block.stop)
            q_bRd, g_bRd = q_bnd[:, at], g_bnd[:, at]
            total = scratch.take("total", q_bRd.shape).zero_()
            for span in block.spans:
                tile = _tile(rows, block, span, call, dtype)
                keys = slice(span.start, span.stop)
                scores = _scores(q_bRd, k_bnd[:, keys], tile, rows, call, scratch)
                d_scores = scratch.take("d_scores", scores.shape)
                torch.bmm(g_bRd, v_bnd[:, keys].transpose(1, 2), out=d_scores)
                torch.ops.aten.silu_backward.grad_input(d_scores, scores, grad_input=d_scores)
                _mask(d_scores, tile, rows)
                weights = _mask(F.silu(scores, inplace=True), tile, rows)
                dv_bnd[:, keys].baddbmm_(weights.transpose(1, 2), g_bRd)
                dk_bnd[:, keys].baddbmm_(d_scores.transpose(1, 2), q_bRd)
                total.baddbmm_(d_scores, k_bnd[:, keys])
                tables.add(d_scores, tile, rows)
            if block.own_key:
                own = _own_scores(q_bRd, k_bnd[:, at], rows, call)
                d_own = (g_bRd * v_bnd[:, at]).sum(-1, keepdim=True)
                d_own = torch.ops.aten.silu_backward(d_own, own)
                dv_bnd[:, at] += F.silu(own) * g_bRd
                dk_bnd[:, at] += d_own * q_bRd
                total.add_(d_own * k_bnd[:, at])
                tables.add_own(d_own, rows)
            dq_bnd[:, at] = total
        _scatter(dq_bnd.mul_(call.alpha), rows, d_q)
        _scatter(dk_bnd, rows, d_k)
        _scatter(dv_bnd, rows, d_v)
    return d_q, d_k, d_v, tables.position, tables.time


def _plan(offsets: Tensor, call: Call, heads: int) -> Iterator[Rows]:
    """Groups of short rows of like length, then the long rows one by one; empty rows drop out."""
    bounds = offsets.tolist()
    count = len(bounds) - 1
    targets = [0] * count if call.num_targets is None else call.num_targets.tolist()
    lengths = [bounds[row + 1] - bounds[row] for row in range(count)]
    order = sorted((row for row in range(count) if lengths[row] > 0), key=lengths.__getitem__)
    group: list[int] = []
    for row in order:
        length = lengths[row]
        too_much = (len(group) + 1) * heads * length * length * 4 > GROUP_BYTES
        if group and (too_much or length > SHORT):
            yield _group(group, bounds, lengths, targets, offsets.device)
            group = []
        if length > SHORT:
            index = torch.arange(bounds[row], bounds[row + 1], device=offsets.device)
            end = torch.full((1, 1, 1), length - targets[row], device=offsets.device)
            cut = blocks(length, targets[row], call.mask, BLOCK, KEYS)
            yield Rows(bounds[row], index, None, 1, length, end, cut)
        else:
            group.append(row)
    if group:
        yield _group(group, bounds, lengths, targets, offsets.device)


def _group(
    group: list[int],
    bounds: list[int],
    lengths: list[int],
    targets: list[int],
    device: torch.device,
) -> Rows:
    """Short rows as one padded stack with a single tile."""
    length = lengths[group[-1]]  # sorted: the last is the longest
    starts = torch.tensor([bounds[row] for row in group], device=device)[:, None]
    sizes = torch.tensor([lengths[row] for row in group], device=device)[:, None]
    ends = torch.tensor([lengths[row] - targets[row] for row in group], device=device)
    place = torch.arange(length, device=device)
    source = (starts + torch.minimum(place, sizes - 1)).flatten()
    keep = None
    if lengths[group[0]] < length:
        keep = torch.nonzero((place < sizes).flatten()).flatten()
    block = Block(0, length, (Span(0, length, full=False),), own_key=False)
    return Rows(bounds[group[0]], source, keep, len(group), length, ends.view(-1, 1, 1), [block])


def _scatter(x_bnd: Tensor, rows: Rows, out: Tensor) -> None:
    """[G * H, n, d] -> the packed tokens of `out` [L, H, d]; padded places are dropped."""
    if rows.group == 1:
        out[rows.start : rows.start + rows.length] = x_bnd.transpose(0, 1)
        return
    values = x_bnd.unflatten(0, (rows.group, -1)).transpose(1, 2).flatten(0, 1).to(out.dtype)
    source = rows.source
    if rows.keep is not None:
        values, source = values.index_select(0, rows.keep), source.index_select(0, rows.keep)
    out.index_copy_(0, source, values)


def _kept(rows: Rows, like_bnd: Tensor) -> Tensor:
    """1 where a padded place holds a token, else 0: [G * H, n, 1]."""
    kept = like_bnd.new_zeros(rows.group * rows.length)
    if rows.keep is not None:
        kept.index_fill_(0, rows.keep, 1.0)
    heads = like_bnd.size(0) // rows.group
    return kept.view(rows.group, rows.length, 1).repeat_interleave(heads, dim=0)


def _tile(rows: Rows, block: Block, span: Span, call: Call, dtype: torch.dtype) -> Tile:
    device = rows.source.device
    biased = call.position_bias is not None or call.time_bias is not None
    if span.full and not biased:
        return Tile(None, None, None)
    i = torch.arange(block.start, block.stop, device=device)[:, None]
    j = torch.arange(span.start, span.stop, device=device)[None, :]
    end, spec = rows.history_end, call.mask
    time_i = time_j = query_time = None
    if call.timestamps is not None:
        times = call.timestamps.index_select(0, rows.source).view(rows.group, rows.length)
        time_i = times[:, block.start : block.stop, None]
        time_j = times[:, None, span.start : span.stop]
        place = rab.query_place(i.view(1, -1), end[:, :, 0], spec.append_stable)
        query_time = times.gather(1, place)[:, :, None]
    seen = position = time = None
    if not span.full:
        seen = visible(i, j, end, spec, time_i, time_j).to(dtype)[:, None]
    if call.position_bias is not None:
        size = call.position_bias.size(1)
        position = rab.position_index(i, j, end, spec.contextual_len, size)
    if call.time_bias is not None and query_time is not None and time_j is not None:
        size = call.time_bias.size(1)
        time = rab.time_index(
            i, j, query_time, time_j, spec.contextual_len, size, call.time_bias_divisor
        )
    return Tile(seen, position, time)


def _scores(
    q_bRd: Tensor, k_bCd: Tensor, tile: Tile, rows: Rows, call: Call, scratch: _Scratch
) -> Tensor:
    """[b, R, C]; q carries alpha already."""
    scores = scratch.take("scores", (q_bRd.size(0), q_bRd.size(1), k_bCd.size(1)))
    torch.bmm(q_bRd, k_bCd.transpose(1, 2), out=scores)
    by_head = scores.unflatten(0, (rows.group, -1))
    for table, index in ((call.position_bias, tile.position), (call.time_bias, tile.time)):
        if table is not None and index is not None:
            by_head += rab.padded_table(table.to(scores.dtype))[:, index].transpose(0, 1)
    return scores


def _mask(weights: Tensor, tile: Tile, rows: Rows) -> Tensor:
    """Zero what is not seen, in place: [b, R, C]."""
    if tile.seen is not None:
        weights.unflatten(0, (rows.group, -1)).mul_(tile.seen)
    return weights


def _own_scores(q_bRd: Tensor, k_bRd: Tensor, rows: Rows, call: Call) -> Tensor:
    """q_i . k_i with the bias of distance and time zero: [b, R, 1]."""
    scores = (q_bRd * k_bRd).sum(-1, keepdim=True)
    by_head = scores.unflatten(0, (rows.group, -1))
    if call.position_bias is not None:
        middle = (call.position_bias.size(1) - 1) // 2
        by_head += call.position_bias[:, middle].view(1, -1, 1, 1)
    if call.time_bias is not None:
        by_head += call.time_bias[:, 0].view(1, -1, 1, 1)
    return scores


class _TableGradients:
    """Sums d_scores into the bias tables; tables shared by the heads sum over heads too."""

    def __init__(self, call: Call, heads: int, dtype: torch.dtype, device: torch.device) -> None:
        def zeros(table: Tensor | None) -> Tensor:
            # one more column than the table: where pairs without a bias go
            shape = (0, 1) if table is None else (table.size(0), table.size(1) + 1)
            return torch.zeros(shape, dtype=dtype, device=device)

        self._heads = heads
        self._position, self._time = zeros(call.position_bias), zeros(call.time_bias)

    @property
    def position(self) -> Tensor:
        return self._position[:, :-1].contiguous()

    @property
    def time(self) -> Tensor:
        return self._time[:, :-1].contiguous()

    def add(self, d_scores: Tensor, tile: Tile, rows: Rows) -> None:
        for table, index in ((self._position, tile.position), (self._time, tile.time)):
            if index is not None:
                d_GHRC = d_scores.unflatten(0, (rows.group, self._heads))
                d_GhRC = d_GHRC.sum(1, keepdim=True) if table.size(0) == 1 else d_GHRC
                source = d_GhRC.transpose(0, 1).flatten(1)
                table.index_add_(1, index.expand(rows.group, -1, -1).flatten(), source)

    def add_own(self, d_scores: Tensor, rows: Rows) -> None:
        for table, column in ((self._position, (self._position.size(1) - 2) // 2), (self._time, 0)):
            if table.size(0) > 0:
                d_H = d_scores.unflatten(0, (rows.group, self._heads)).sum((0, 2, 3))
                table[:, column] += d_H.sum() if table.size(0) == 1 else d_H
