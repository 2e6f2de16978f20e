# SPDX-License-Identifier: Apache-2.0
"""Keys and values that STU layers leave behind, and the tokens that go on from them.

    prefill    [contextual | history]                 -> states, K and V of every layer
    append     new events      against the cache      -> states, K and V of the new tokens
    score      candidates      against the cache      -> states

B rows, L new tokens, C contextual tokens, T candidates. A layer's cache is a `CachedKV`, contiguous
or paged; layers behind an attention truncation hold fewer tokens than those before it. What may be
reused when: docs/kv_cache.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tzgen.modules.kv_cache import Write
from tzgen.modules.sequence import Events, TokenSequence, first_time, last_time
from tzgen.ops import jagged
from tzgen.ops.hstu_attention_cached import CachedKV

LayerCaches = tuple[CachedKV, ...]


@dataclass(frozen=True)
class EncodedHistory:
    """Everything of a batch of users that scoring needs: an encoded history.

    layers: one CachedKV a layer. lengths int64 [B]: tokens of each row, those that a truncation cut
    off included. query_time int64 [B]: the request that ages were measured from. newest int64 [B]:
    time of the newest event, 0 without one. contextual [B, C, Dx]: the features that the contextual
    tokens (and generated weights) were made of, or None. max_len: at least the longest row.
    """

    layers: LayerCaches
    lengths: Tensor
    query_time: Tensor
    newest: Tensor
    contextual: Tensor | None
    max_len: int

    def extended(self, new: EncodedHistory) -> EncodedHistory:
        """With the tokens of `new` (an append's result) behind each row; contiguous caches."""
        return replace(
            new,
            layers=joined(self.layers, new.layers),
            lengths=self.lengths + new.lengths,
            max_len=self.max_len + new.max_len,
        )


def joined(held: LayerCaches, new: LayerCaches) -> LayerCaches:
    """Layer by layer and row by row, the tokens of both; contiguous. What the layers share before,
    they share again. Copies everything: pages do not have to."""
    out: list[CachedKV] = []
    places: list[Tensor] = []
    for at, (cache, fresh) in enumerate(zip(held, new, strict=True)):
        if cache.table is not None or fresh.table is not None:
            raise ValueError(
                "joined() takes contiguous caches; write new tokens into the pages instead"
            )
        pair = slice(at - 1, at + 1)
        if at == 0 or not (share_rows(held[pair]) and share_rows(new[pair])):
            places = jagged.concat_places(
                [cache.lengths, fresh.lengths], [cache.k.size(0), fresh.k.size(0)]
            )
            lengths, times = cache.lengths + fresh.lengths, None
            if cache.timestamps is not None and fresh.timestamps is not None:
                times = _laid_out(cache.timestamps, fresh.timestamps, places)
        out.append(
            CachedKV(
                _laid_out(cache.k, fresh.k, places),
                _laid_out(cache.v, fresh.v, places),
                lengths,
                cache.max_len + fresh.max_len,
                timestamps=times,
            )
        )
    return tuple(out)


def _laid_out(held: Tensor, fresh: Tensor, places: list[Tensor]) -> Tensor:
    out = held.new_empty(held.size(0) + fresh.size(0), *held.shape[1:])
    return out.index_copy_(0, places[0], held).index_copy_(0, places[1], fresh)


def share_rows(caches: LayerCaches) -> bool:
    """Whether all hold the same tokens, by the very tensors: not so behind a truncation."""
    first = caches[0]
    return all(
        cache.lengths is first.lengths
        and cache.table is first.table
        and cache.timestamps is first.timestamps
        for cache in caches
    )


def gathered(cache: CachedKV) -> CachedKV:
    """The same tokens as contiguous rows: a copy of what lies in pages."""
    if cache.table is None:
        return cache
    total = int(cache.lengths.sum())
    rows, places = jagged.place_index(cache.lengths, total)
    pages = cache.table[rows, places // cache.page_size]
    slots = pages * cache.page_size + places % cache.page_size

    def taken(pool: Tensor) -> Tensor:
        return pool.flatten(0, 1).index_select(0, slots)

    times = None if cache.timestamps is None else taken(cache.timestamps)
    return CachedKV(taken(cache.k), taken(cache.v), cache.lengths, cache.max_len, timestamps=times)


def history_of(events: Events) -> Events:
    """The same rows without candidates."""
    candidates = None if events.candidates is None else events.candidates[:0]
    return replace(
        events,
        candidates=candidates,
        num_candidates=torch.zeros_like(events.uih_lengths),
        candidate_timestamps=events.candidate_timestamps[:0],
        max_candidates=0,
    )


def candidates_of(events: Events, cache: EncodedHistory) -> Events:
    """The candidates alone: no history, and the features and the request that the cache knows."""
    return replace(
        events,
        uih=events.uih[:0],
        uih_lengths=torch.zeros_like(events.num_candidates),
        uih_timestamps=events.uih_timestamps[:0],
        actions=None if events.actions is None else events.actions[:0],
        watchtimes=None if events.watchtimes is None else events.watchtimes[:0],
        contextual=cache.contextual,
        query_time=cache.query_time,
        max_uih_len=0,
    )


def candidate_chunks(events: Events, size: int) -> list[Events]:
    """The candidates of all rows, in order, in chunks of `size`: the same rows with fewer of them.

    A row that has none in a chunk stays with a length of 0, so that every chunk fits the cache of
    all rows; most rows are whole in one chunk, which reads their keys and values once.
    """
    if events.candidates is None:
        raise ValueError("there are no candidates to cut")
    total = events.candidates.size(0)
    ends = torch.cumsum(events.num_candidates, 0)
    starts = ends - events.num_candidates
    chunks = []
    for low in range(0, total, size):
        high = min(low + size, total)
        counts = ends.clamp(max=high) - starts.clamp(min=low)
        chunk = replace(
            events,
            candidates=events.candidates[low:high],
            candidate_timestamps=events.candidate_timestamps[low:high],
            num_candidates=counts.clamp(min=0),
            max_candidates=min(size, events.max_candidates),
        )
        chunks.append(chunk)
    return chunks


def continued(
    x: Tensor,
    lengths: Tensor,
    *,
    cached: Tensor,
    targets: bool,
    timestamps: Tensor,
    query_time: Tensor,
    max_new: int,
    contextual_len: int,
) -> TokenSequence:
    """New tokens x [L, D], `lengths` int64 [B] of them a row, behind `cached` int64 [B] tokens.

    `targets`: whether they are candidates or events. Places and lengths are those of whole rows, as
    positions and domains read them; offsets and max_len are of the new tokens, as attention does.
    """
    index = torch.arange(x.size(0), device=x.device)
    if lengths.size(0) == 1 and not torch.compiler.is_compiling():  # one user's request
        rows, within = torch.zeros_like(index), index
    else:
        rows, within = jagged.place_index(lengths, x.size(0))
    return TokenSequence(
        x=x,
        lengths=cached + lengths,
        offsets=jagged.offsets_of(lengths),
        num_targets=lengths if targets else torch.zeros_like(lengths),
        rows=rows,
        places=cached.index_select(0, rows) + within,
        timestamps=timestamps,
        history=index[:0] if targets else index,
        targets=index if targets else index[:0],
        query_time=query_time,
        max_len=max_new,
        max_targets=max_new if targets else 0,
        contextual_len=contextual_len,
    )


def newest_time(events: Events, fallback: Tensor) -> Tensor:
    """Time of each row's newest event, int64 [B]; `fallback` where there is none."""
    return last_time(events.uih_timestamps, events.uih_lengths, fallback)


def oldest_time(events: Events, fallback: Tensor) -> Tensor:
    """Time of each row's first event, int64 [B]; `fallback` where there is none."""
    return first_time(events.uih_timestamps, events.uih_lengths, fallback)


def store(encoded: EncodedHistory, write: Write) -> None:
    """Put keys, values and times into pages, and commit."""
    offsets = jagged.offsets_of(encoded.lengths)
    for index, layer in enumerate(encoded.layers):
        if layer.k.size(0) != encoded.layers[0].k.size(0):
            raise ValueError("behind an attention truncation layers differ in length: no pages")
        write.layer(index, layer.k, layer.v, offsets)
    times = encoded.layers[0].timestamps
    if times is not None:
        write.timestamps(times, offsets)
    write.commit()
