# SPDX-License-Identifier: Apache-2.0
"""Softmax attention over padded groups of rows, forward and backward, in plain PyTorch.

On a CPU rows are sorted by length, so that those of a group are about equally long and little is
padded; its scores fit a cache, and a long row is cut into blocks of queries. On other devices
groups are consecutive rows padded to the longest row there may be, so that the device is asked for
nothing. Memory is that of one group's scores. Backward computes the scores again: kept are q, k, v.

G rows of a group, H heads, b = G * H; n queries and m keys of the padded rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tzgen.ops import jagged
from tzgen.ops.hstu_attention.bias import padded_table
from tzgen.ops.softmax_attention.call import Call

CPU_BYTES = 1 << 20  # scores of one group: about an L2 cache
DEVICE_BYTES = 256 << 20
SHORTEST_BLOCK = 16  # queries of a block


@dataclass(frozen=True)
class Group:
    """Rows that are computed together. rows int64 [G]; `place` int64 [G * n], `key_place` [G * m]:
    packed token of each padded place, the row's last where it is padding."""

    rows: Tensor
    num_queries: int
    num_keys: int
    place: Tensor
    key_place: Tensor
    lengths: Tensor  # int64 [G, 1, 1]
    key_lengths: Tensor  # int64 [G, 1, 1]
    ends: Tensor | None
    block: int  # queries at a time


def forward(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """[Lq, H, d], [Lk, H, d], [Lk, H, e] -> [Lq, H, e] in the dtype of q."""
    if q.size(0) == 0 or k.size(0) == 0:
        return torch.zeros((*q.shape[:2], v.size(2)), dtype=q.dtype, device=q.device)
    padded = _Padded(call.offsets, q.size(0))
    for group in _plan(q, call):
        q_bnd = _gather(q, group.place, group).mul_(call.scale)
        k_bmd, v_bmd = (_gather(x, group.key_place, group) for x in (k, v))
        parts = []
        for start in range(0, group.num_queries, group.block):
            at = slice(start, start + group.block)
            weights, keys = _weights(q_bnd[:, at], k_bmd, start, group, call)[:2]
            parts.append(torch.bmm(weights, v_bmd[:, :keys]))
        padded.add(parts[0] if len(parts) == 1 else torch.cat(parts, 1), group)
    return padded.packed(q.dtype)


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, call: Call
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and of the bias table (empty without one)."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    table = call.position_bias
    shape = (0, 1) if table is None else (table.size(0), table.size(1) + 1)
    d_table = torch.zeros(shape, dtype=dtype, device=q.device)
    if q.size(0) == 0 or k.size(0) == 0:
        nothing = [torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
        return nothing[0], nothing[1], nothing[2], d_table[:, :-1].contiguous()
    d_q = _Padded(call.offsets, q.size(0))
    d_k, d_v = (_Padded(call.key_offsets, k.size(0)) for _ in range(2))
    for group in _plan(q, call):
        q_bnd = _gather(q, group.place, group).mul_(call.scale)
        k_bmd, v_bmd = (_gather(x, group.key_place, group) for x in (k, v))
        g_bne = _without_padding(_gather(grad, group.place, group), group)
        dq_bnd = torch.empty_like(q_bnd)
        dk_bmd, dv_bmd = torch.zeros_like(k_bmd), torch.zeros_like(v_bmd)
        for start in range(0, group.num_queries, group.block):
            at = slice(start, start + group.block)
            weights, keys, columns = _weights(q_bnd[:, at], k_bmd, start, group, call)
            dv_bmd[:, :keys].baddbmm_(weights.transpose(1, 2), g_bne[:, at])
            d_weights = torch.bmm(g_bne[:, at], v_bmd[:, :keys].transpose(1, 2))
            mean = (d_weights * weights).sum(-1, keepdim=True)
            d_scores = d_weights.sub_(mean).mul_(weights)
            dq_bnd[:, at] = torch.bmm(d_scores, k_bmd[:, :keys])
            dk_bmd[:, :keys].baddbmm_(d_scores.transpose(1, 2), q_bnd[:, at])
            if columns is not None:
                _add_to_table(d_table, d_scores, columns, group)
        d_q.add(dq_bnd.mul_(call.scale), group)
        d_k.add(dk_bmd, group, keys=True)
        d_v.add(dv_bmd, group, keys=True)
    return (
        d_q.packed(q.dtype),
        d_k.packed(k.dtype),
        d_v.packed(v.dtype),
        d_table[:, :-1].contiguous(),
    )


def _weights(
    q_bRd: Tensor, k_bmd: Tensor, start: int, group: Group, call: Call
) -> tuple[Tensor, int, Tensor | None]:
    """Softmax [b, R, C] over the first C keys, C, and columns of the bias table [G or 1, R, C]."""
    stop = start + q_bRd.size(1)
    keys = _reach(start, stop, group, call)
    i = torch.arange(start, stop, device=q_bRd.device)[:, None]
    j = torch.arange(keys, device=q_bRd.device)[None, :]
    scores = torch.bmm(q_bRd, k_bmd[:, :keys].transpose(1, 2))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    by_head = scores.unflatten(0, (group.rows.size(0), -1))
    columns = call.columns(i, j, group.ends)
    if columns is not None and call.position_bias is not None:
        table = padded_table(call.position_bias.to(scores.dtype))
        by_head += table[:, columns].transpose(0, 1)
    seen = call.seen(i, j, group.ends, group.key_lengths)[:, None]
    by_head.masked_fill_(~seen, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, -1)
    if call.mask is None:  # a row may have no keys at all: its queries get zeros
        weights.unflatten(0, (group.rows.size(0), -1)).mul_(group.key_lengths[:, None] > 0)
    return weights.to(q_bRd.dtype), keys, columns


def _reach(start: int, stop: int, group: Group, call: Call) -> int:
    """Keys from which on no query of a block sees any; a block of a single row, or of all rows."""
    mask = call.mask
    if mask is None or group.ends is not None or start < mask.contextual_len:
        return group.num_keys
    return min(stop, group.num_keys)


def _gather(x: Tensor, place: Tensor, group: Group) -> Tensor:
    """Packed [L, H, d] -> contiguous [b, places, d], in float32 or more on a CPU."""
    dtype = torch.promote_types(x.dtype, torch.float32) if x.is_cpu else x.dtype
    rows = x.index_select(0, place).to(dtype).unflatten(0, (group.rows.size(0), -1))
    return rows.transpose(1, 2).contiguous().flatten(0, 1)


def _without_padding(g_bne: Tensor, group: Group) -> Tensor:
    """A padded place repeats a token, whose gradient must not be counted again."""
    kept = torch.arange(g_bne.size(1), device=g_bne.device)[:, None] < group.lengths
    g_bne.unflatten(0, (group.rows.size(0), -1)).mul_(kept[:, None])
    return g_bne


def _add_to_table(d_table: Tensor, d_scores: Tensor, columns: Tensor, group: Group) -> None:
    """Sum the gradients of all pairs of a column; a table that heads share sums over them too."""
    d_GHRC = d_scores.to(d_table.dtype).unflatten(0, (group.rows.size(0), -1))
    if d_table.size(0) == 1:
        d_GHRC = d_GHRC.sum(1, keepdim=True)
    if columns.size(0) == 1:
        d_GHRC = d_GHRC.sum(0, keepdim=True)
    d_table.index_add_(1, columns.flatten(), d_GHRC.transpose(0, 1).flatten(1))


class _Padded:
    """Results of the groups end to end, and where each packed token lies among them."""

    def __init__(self, offsets: Tensor, total: int) -> None:
        self._lengths = offsets.diff()
        self._total, self._size = total, 0
        self._starts = torch.zeros_like(self._lengths)
        self._parts: list[Tensor] = []

    def add(self, x_bnd: Tensor, group: Group, *, keys: bool = False) -> None:
        count = group.rows.size(0)
        width = group.num_keys if keys else group.num_queries
        first = torch.arange(count, device=x_bnd.device) * width + self._size
        self._starts.index_copy_(0, group.rows, first)
        self._size += count * width
        self._parts.append(x_bnd.unflatten(0, (count, -1)).transpose(1, 2).flatten(0, 1))

    def packed(self, dtype: torch.dtype) -> Tensor:
        """[L, H, d]"""
        rows, places = jagged.place_index(self._lengths, self._total)
        source = self._starts.index_select(0, rows) + places
        whole = torch.cat([part.to(dtype) for part in self._parts])
        return whole.index_select(0, source)


def _plan(q: Tensor, call: Call) -> Iterator[Group]:
    """Groups that cover every row."""
    heads, count = q.size(1), call.offsets.numel() - 1
    most = CPU_BYTES if q.is_cpu else DEVICE_BYTES
    order, lengths, key_lengths = (_sorted_rows if q.is_cpu else _consecutive_rows)(call)
    at = 0
    while at < count:
        queries = keys = 1
        stop = at
        while stop < count:
            longer = max(queries, lengths[order[stop]])
            wider = max(keys, key_lengths[order[stop]])
            if stop > at and (stop + 1 - at) * heads * longer * wider * 4 > most:
                break
            queries, keys, stop = longer, wider, stop + 1
        rows = torch.tensor(order[at:stop], device=q.device)
        block = queries
        if stop - at == 1:
            block = min(queries, max(most // (heads * keys * 4), SHORTEST_BLOCK))
        yield _group(rows, queries, keys, block, call, q.device)
        at = stop


def _sorted_rows(call: Call) -> tuple[list[int], list[int], list[int]]:
    """Rows in the order of their lengths; how many queries and keys each row has."""
    lengths, key_lengths = call.offsets.diff().tolist(), call.key_offsets.diff().tolist()
    order = sorted(range(len(lengths)), key=lambda row: (key_lengths[row], lengths[row]))
    return order, lengths, key_lengths


def _consecutive_rows(call: Call) -> tuple[list[int], list[int], list[int]]:
    """The same without asking the device: rows as they come, each as long as any may be."""
    count = call.offsets.numel() - 1
    return list(range(count)), [call.max_len] * count, [call.max_key_len] * count


def _group(
    rows: Tensor, queries: int, keys: int, block: int, call: Call, device: torch.device
) -> Group:
    places = []
    sizes = []
    for offsets, width in ((call.offsets, queries), (call.key_offsets, keys)):
        starts = offsets.index_select(0, rows)[:, None]
        size = offsets.diff().index_select(0, rows)[:, None]
        place = torch.minimum(torch.arange(width, device=device), size - 1)
        places.append((starts + place).clamp(min=0).flatten())
        sizes.append(size.view(-1, 1, 1))
    ends = call.history_ends(rows)
    return Group(rows, queries, keys, places[0], places[1], sizes[0], sizes[1], ends, block)
