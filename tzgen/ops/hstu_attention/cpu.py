# SPDX-License-Identifier: Apache-2.0
"""STU attention in plain PyTorch without a [B, H, N, N] tensor, forward and backward.

There is no softmax, so key ranges simply add up. `cpu_rows.py` lays rows out together and says
which queries meet which keys. Backward recomputes the scores: kept are q, k and v. Arithmetic is
float32, or float64 for float64 inputs. Made for CPUs; runs on any device.

An invisible pair scores `HIDDEN`, of which SiLU and its derivative are exactly zero: one pass over
the scores masks them, and those of the gradient as well.

G rows together, H heads, n places of each, b = (rows that take part) * H, R queries, C keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tzgen.ops.hstu_attention import bias as rab
from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention.cpu_rows import Keys, Rows, Strip, plan
from tzgen.ops.hstu_attention.mask import visible

HIDDEN = -1e30  # exp(-HIDDEN) is infinite, HIDDEN itself is not


@dataclass(frozen=True)
class Tile:
    """Queries x keys of a strip: which pairs count, and their columns in the bias tables."""

    hidden: Tensor | None  # math dtype [rows, 1, R, keys from `masked` on], 0 or HIDDEN; None = all
    position: Tensor | None  # int64 [rows, R, C]
    time: Tensor | None  # int64 [rows, R, C]


class _Scratch:
    """Buffers used again by every group and strip: fresh pages cost more than the arithmetic."""

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
            packed = None
            if x.dtype == self._dtype:
                packed = self.take("packed", (rows.source.numel(), *x.shape[1:]))
            source = torch.index_select(x, 0, rows.source, out=packed)
            source = source.unflatten(0, (rows.group, rows.length))
        out = self.take(name, (rows.group, x.size(1), rows.length, x.size(2)))
        return out.copy_(source.transpose(1, 2)).flatten(0, 1)

    def scatter(self, x_bnd: Tensor, rows: Rows, out: Tensor) -> None:
        """[G * H, n, d] -> the packed tokens of `out` [L, H, d]; padded places are dropped."""
        if rows.group == 1:
            out[rows.start : rows.start + rows.length] = x_bnd.transpose(0, 1)
            return
        by_token = x_bnd.unflatten(0, (rows.group, -1)).transpose(1, 2)
        flat = self.take("packed", by_token.shape).copy_(by_token).flatten(0, 1)
        if rows.tokens.numel() == out.size(0) and out.dtype == flat.dtype:
            torch.index_select(flat, 0, rows.places, out=out)
        else:
            out.index_copy_(0, rows.tokens, flat.index_select(0, rows.places).to(out.dtype))


def forward(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, call: Call) -> Tensor:
    """[L, H, attention_dim] x 2, [L, H, hidden_dim] -> [L, H, hidden_dim]."""
    dtype, heads = torch.promote_types(q.dtype, torch.float32), q.size(1)
    scratch = _Scratch(dtype, q.device)
    out = torch.empty(v.shape, dtype=q.dtype, device=v.device)
    for rows in plan(offsets, call, heads):
        q_bnd, k_bnd, v_bnd = (scratch.gather(*x, rows) for x in (("q", q), ("k", k), ("v", v)))
        out_bnd = scratch.take("out", v_bnd.shape)
        for strip in rows.strips:
            q_bRd = q_bnd[: strip.count * heads, strip.start : strip.stop]
            total = scratch.take("total", (*q_bRd.shape[:2], v.size(2)))
            if not strip.keys:
                total.zero_()
            for keys in strip.keys:
                k_bCd, v_bCd = (x[: q_bRd.size(0), keys.start : keys.stop] for x in (k_bnd, v_bnd))
                tile = _tile(rows, strip, keys, call, dtype)
                weights = F.silu(_scores(q_bRd, k_bCd, tile, call, scratch), inplace=True)
                first = keys is strip.keys[0]
                total.baddbmm_(weights, v_bCd, beta=0 if first else 1, alpha=1 / call.divisor)
            if strip.own_key:
                own = _own_scores(q_bRd, k_bnd[:, strip.start : strip.stop], call)
                values = F.silu(own) * v_bnd[:, strip.start : strip.stop]
                total.add_(values, alpha=1 / call.divisor)
            out_bnd[: q_bRd.size(0), strip.start : strip.stop] = total
        scratch.scatter(out_bnd, rows, out)
    return out


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, call: Call
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and of the two bias tables (empty where there is no table)."""
    dtype, heads = torch.promote_types(q.dtype, torch.float32), q.size(1)
    scratch = _Scratch(dtype, q.device)
    # not empty_like: that keeps the strides of a view into uvqk
    d_q, d_k, d_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    tables = _TableGradients(call, heads, dtype, q.device)
    for rows in plan(offsets, call, heads):
        part = _Part(grad, q, k, v, rows, call, scratch, tables)
        for strip in rows.strips:
            part.add(strip)
        scratch.scatter(part.dq_bnd, rows, d_q)
        scratch.scatter(part.dk_bnd, rows, d_k)
        scratch.scatter(part.dv_bnd, rows, d_v)
    return d_q, d_k, d_v, tables.position, tables.time


class _Part:
    """Backward of rows that are laid out together: dq, dk, dv [G * H, n, d]."""

    def __init__(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rows: Rows,
        call: Call,
        scratch: _Scratch,
        tables: _TableGradients,
    ) -> None:
        self._rows, self._call, self._scratch, self._tables = rows, call, scratch, tables
        self._q, self._k, self._v, self._g = (
            scratch.gather(*x, rows) for x in (("q", q), ("k", k), ("v", v), ("g", grad))
        )
        if rows.kept is not None:  # a padded place repeats a token; it must not be counted again
            self._g.unflatten(0, (rows.group, -1)).mul_(rows.kept)
        self.dq_bnd = self._q  # a strip's queries are not read again
        self.dk_bnd = scratch.take("dk", self._k.shape).zero_()
        self.dv_bnd = scratch.take("dv", self._v.shape).zero_()

    def add(self, strip: Strip) -> None:
        """What the queries of a strip contribute."""
        rows, scratch = self._rows, self._scratch
        alpha, share = self._call.alpha, 1 / self._call.divisor
        batch = slice(0, strip.count * (self._q.size(0) // rows.group))
        at = slice(strip.start, strip.stop)
        q_bRd, g_bRd = self._q[batch, at], self._g[batch, at]
        total = scratch.take("total", tuple(q_bRd.shape))
        if not strip.keys:
            total.zero_()
        for keys in strip.keys:
            between = slice(keys.start, keys.stop)
            k_bCd, v_bCd = self._k[batch, between], self._v[batch, between]
            tile = _tile(rows, strip, keys, self._call, q_bRd.dtype)
            scores = _scores(q_bRd, k_bCd, tile, self._call, scratch)
            d_scores = scratch.take("d_scores", tuple(scores.shape))
            d_scores.baddbmm_(g_bRd, v_bCd.transpose(1, 2), beta=0, alpha=share)
            torch.ops.aten.silu_backward.grad_input(d_scores, scores, grad_input=d_scores)
            weights = F.silu(scores, inplace=True)
            self._add_product(self.dv_bnd[batch, between], weights, g_bRd, share)
            self._add_product(self.dk_bnd[batch, between], d_scores, q_bRd, alpha)
            first = keys is strip.keys[0]
            total.baddbmm_(d_scores, k_bCd, beta=0 if first else 1, alpha=alpha)
            self._tables.add(d_scores, tile)
        if strip.own_key:
            own = _own_scores(q_bRd, self._k[batch, at], self._call)
            d_own = (g_bRd * self._v[batch, at]).sum(-1, keepdim=True).mul_(share)
            d_own = torch.ops.aten.silu_backward(d_own, own)
            self.dv_bnd[batch, at].add_(F.silu(own) * g_bRd, alpha=share)
            self.dk_bnd[batch, at].add_(d_own * q_bRd, alpha=alpha)
            total.add_(d_own * self._k[batch, at], alpha=alpha)
            self._tables.add_own(d_own)
        self.dq_bnd[batch, at] = total

    def _add_product(self, out_bCd: Tensor, x_bRC: Tensor, y_bRd: Tensor, factor: float) -> None:
        """out += factor x^T y; by way of a buffer: batches of GEMMs want a contiguous result."""
        product = self._scratch.take("product", tuple(out_bCd.shape))
        torch.bmm(x_bRC.transpose(1, 2), y_bRd, out=product)
        out_bCd.add_(product, alpha=factor)


def _tile(rows: Rows, strip: Strip, keys: Keys, call: Call, dtype: torch.dtype) -> Tile:
    device = rows.source.device
    end, spec = rows.history_end[: strip.count], call.mask
    i = torch.arange(strip.start, strip.stop, device=device)[:, None]
    j = torch.arange(keys.start, keys.stop, device=device)[None, :]
    time_i = time_j = query_time = None
    if call.timestamps is not None and (spec.timestamp_mask or call.time_bias is not None):
        source = rows.source.view(rows.group, rows.length)[: strip.count]
        times = call.timestamps.index_select(0, source.flatten()).view_as(source)
        time_i = times[:, strip.start : strip.stop, None]
        time_j = times[:, None, keys.start : keys.stop]
        place = rab.query_place(i.view(1, -1), end[:, :, 0], spec.append_stable)
        query_time = times.gather(1, place)[:, :, None]
    hidden = position = time = None
    if keys.masked < keys.stop:
        tail = slice(keys.masked - keys.start, None)
        later = None if time_j is None else time_j[..., tail]
        seen = visible(i, j[:, tail], end, spec, time_i, later)
        if strip.start < spec.contextual_len or spec.timestamp_mask:  # may look beyond a short row
            seen = seen & (j[:, tail] < rows.end[: strip.count])
        hidden = torch.where(seen[:, None], 0.0, HIDDEN).to(dtype)
    if call.position_bias is not None:
        size = call.position_bias.size(1)
        position = rab.position_index(i, j, end, spec.contextual_len, size)
    if call.time_bias is not None and query_time is not None and time_j is not None:
        size = call.time_bias.size(1)
        time = rab.time_index(
            i, j, query_time, time_j, spec.contextual_len, size, call.time_bias_divisor
        )
    return Tile(hidden, position, time)


def _scores(q_bRd: Tensor, k_bCd: Tensor, tile: Tile, call: Call, scratch: _Scratch) -> Tensor:
    """[b, R, C], HIDDEN where a pair is not seen."""
    scores = scratch.take("scores", (q_bRd.size(0), q_bRd.size(1), k_bCd.size(1)))
    scores.baddbmm_(q_bRd, k_bCd.transpose(1, 2), beta=0, alpha=call.alpha)
    for table, index in ((call.position_bias, tile.position), (call.time_bias, tile.time)):
        if table is not None and index is not None:
            values = rab.padded_table(table.to(scores.dtype))[:, index]
            scores.unflatten(0, (index.size(0), -1)).add_(values.transpose(0, 1))
    if tile.hidden is not None:
        by_row = scores.unflatten(0, (tile.hidden.size(0), -1))
        by_row[..., scores.size(2) - tile.hidden.size(3) :].add_(tile.hidden)
    return scores


def _own_scores(q_HRd: Tensor, k_HRd: Tensor, call: Call) -> Tensor:
    """Scores of a single row's queries with themselves, distance and time zero: [H, R, 1]."""
    scores = (q_HRd * k_HRd).sum(-1, keepdim=True).mul_(call.alpha)
    if call.position_bias is not None:
        middle = (call.position_bias.size(1) - 1) // 2
        scores += call.position_bias[:, middle].view(-1, 1, 1)
    if call.time_bias is not None:
        scores += call.time_bias[:, 0].view(-1, 1, 1)
    return scores


class _TableGradients:
    """Sums d_scores into the bias tables; tables shared by the heads sum over heads too.

    In float64: a column takes as many terms of both signs as there are pairs of tokens.
    """

    def __init__(self, call: Call, heads: int, dtype: torch.dtype, device: torch.device) -> None:
        def zeros(table: Tensor | None) -> Tensor:
            # one more column than the table: where pairs without a bias go
            shape = (0, 1) if table is None else (table.size(0), table.size(1) + 1)
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self._heads, self._dtype = heads, dtype
        self._position, self._time = zeros(call.position_bias), zeros(call.time_bias)

    @property
    def position(self) -> Tensor:
        return self._position[:, :-1].to(self._dtype).contiguous()

    @property
    def time(self) -> Tensor:
        return self._time[:, :-1].to(self._dtype).contiguous()

    def add(self, d_scores: Tensor, tile: Tile) -> None:
        for table, index in ((self._position, tile.position), (self._time, tile.time)):
            if index is not None:
                d_GHRC = d_scores.unflatten(0, (-1, self._heads))
                d_GhRC = d_GHRC.sum(1, keepdim=True) if table.size(0) == 1 else d_GHRC
                source = d_GhRC.transpose(0, 1).to(table.dtype).flatten(1)
                table.index_add_(1, index.flatten(), source)

    def add_own(self, d_scores_HR1: Tensor) -> None:
        for table, column in ((self._position, (self._position.size(1) - 2) // 2), (self._time, 0)):
            if table.size(0) > 0:
                d_H = d_scores_HR1.sum((1, 2))
                table[:, column] += d_H.sum() if table.size(0) == 1 else d_H
