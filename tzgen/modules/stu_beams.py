# SPDX-License-Identifier: Apache-2.0
"""A causal STU stack as a decoder: rows learnt in one pass, beams that share a row's cache.

A prefill leaves every layer's keys and values in pages, one page a row. The W beams of a row read
it through the page table, W entries with one number: nothing is copied. What a beam has written
itself is kept beside, [B * W, places, H, width] a layer, and reordered by index. A step is an
append (ops.hstu_attention_cached) of the beam's places so far: those that are known already have
query 0, only the last one's output is read.

L tokens of all rows, B rows, W beams of each, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from tzgen.modules.sequence import TokenSequence
from tzgen.modules.stu import EPS, STULayer, STUStack
from tzgen.modules.stu_cache import LayerCaches, continued
from tzgen.modules.stu_options import STUOptions
from tzgen.ops import jagged
from tzgen.ops.dropout import dropout
from tzgen.ops.hstu_attention_cached import CachedKV


@dataclass(frozen=True)
class BeamKV:
    """k [B * W, places, H, attention_dim], v [B * W, places, H, hidden_dim]: a layer's own tokens
    of each beam."""

    k: Tensor
    v: Tensor


class STUDecoder(nn.Module):
    """Dropout, `num_layers` causal STU layers, layer norm. Times are not read."""

    def __init__(
        self,
        options: STUOptions,
        *,
        num_layers: int,
        max_seq_len: int,
        input_dropout_ratio: float,
        kernel: str = "PYTORCH",
    ) -> None:
        super().__init__()
        self.stack = STUStack(
            options, num_layers=num_layers, max_seq_len=max_seq_len, kernel=kernel
        )
        self.norm = nn.LayerNorm(options.embedding_dim, eps=EPS)
        self.ratio = input_dropout_ratio

    def forward(self, x: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
        """x [L, D], offsets int64 [B + 1] -> [L, D]."""
        x = dropout(x, self.ratio, training=self.training)
        out: Tensor = self.norm(self.stack(_tokens(x, offsets.diff(), None, max_len)).x)
        return out

    def prefill(self, x: Tensor, offsets: Tensor, *, max_len: int) -> tuple[Tensor, LayerCaches]:
        """`forward`, and every layer's cache in pages for steps that go on from these rows."""
        tokens, caches = self.stack.prefill(_tokens(x, offsets.diff(), None, max_len))
        return self.norm(tokens.x), tuple(one_page_a_row(cache) for cache in caches)

    def step(
        self, x: Tensor, shared: LayerCaches, own: Sequence[BeamKV] | None, *, room: int
    ) -> tuple[Tensor, list[BeamKV]]:
        """A new token of each beam, [B, W, D], behind `shared` and the beams' own (None at the
        first new token) -> its state [B, W, D], and the beams' keys and values with its own."""
        batch, beams = x.shape[:2]
        kept: list[BeamKV] = []
        x = x.flatten(0, 1)
        places = 1 if own is None else own[0].k.size(1) + 1
        lengths = shared[0].lengths.repeat_interleave(beams)
        tokens = _tokens(x, torch.full_like(lengths, places), lengths, places)
        for index, module in enumerate(self.stack.layers):
            layer = cast(STULayer, module)
            u, v, q, k = layer.project(x, None)
            k, v = k.unsqueeze(1), v.unsqueeze(1)
            if own is not None:
                k, v = torch.cat([own[index].k, k], 1), torch.cat([own[index].v, v], 1)
            kept.append(BeamKV(k, v))
            queries = torch.zeros_like(k)
            queries[:, -1] = q
            held = seen_by_beams(shared[index], beams)
            attended = layer.attend_cached(
                queries.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), tokens, held
            )
            x = layer.combine(x, u, attended.unflatten(0, (-1, places))[:, -1].contiguous(), None)
        return self.norm(x).unflatten(0, (batch, beams)), kept

    def reorder(self, own: Sequence[BeamKV], rows: Tensor, beams: int) -> list[BeamKV]:
        """For `beams` beams a row that go on from beams `rows`, int64 [B * beams], counted over all
        rows (decoding.BeamState)."""
        return [BeamKV(kv.k.index_select(0, rows), kv.v.index_select(0, rows)) for kv in own]


def one_page_a_row(cache: CachedKV) -> CachedKV:
    """A contiguous cache with every row in a page of its own, copied once. Pages hold a power of
    two of tokens, as kernels like them."""
    lengths, size = cache.lengths, 1 << max(cache.max_len - 1, 0).bit_length()
    rows, places = jagged.place_index(lengths, cache.k.size(0))
    at = rows * size + places

    def paged(x: Tensor) -> Tensor:
        pool = x.new_zeros(lengths.size(0) * size, *x.shape[1:])
        return pool.index_copy(0, at, x).unflatten(0, (-1, size))

    table = torch.arange(lengths.size(0), device=lengths.device)[:, None]
    return replace(cache, k=paged(cache.k), v=paged(cache.v), table=table)


def seen_by_beams(cache: CachedKV, beams: int) -> CachedKV:
    """The same pages for `beams` rows instead of each: only table and lengths are repeated."""
    assert cache.table is not None, "beams share pages"
    return replace(
        cache,
        table=cache.table.repeat_interleave(beams, 0),
        lengths=cache.lengths.repeat_interleave(beams),
    )


def _tokens(x: Tensor, lengths: Tensor, cached: Tensor | None, max_len: int) -> TokenSequence:
    """Tokens of history without times, behind `cached` ones. x may hold the newest token of each
    row alone: attention reads offsets, not x."""
    total = x.size(0) if cached is None else x.size(0) * max_len
    none = torch.zeros_like(lengths)
    tokens = continued(
        x.new_empty(total, 0),
        lengths,
        cached=none if cached is None else cached,
        targets=False,
        timestamps=lengths.new_zeros(total),
        query_time=none,
        max_new=max_len,
        contextual_len=0,
    )
    return tokens.with_x(x)
