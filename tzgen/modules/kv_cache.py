# SPDX-License-Identifier: Apache-2.0
"""Keys and values of many sequences in pages of one memory pool, for all layers of a stack.

A sequence is a handle with a length and a list of pages; token t of it lies in page t // page_size
at t % page_size, in every layer the same, so that layers share one page table. Tokens are added by
a write that becomes visible as a whole:

    with cache.write(handles, counts) as write:          pages are reserved, or CacheFull
        for layer, view in enumerate(cache.views(handles)):      what was committed before
            ... hstu_attention_cached(q, k, v, offsets, view, ...)
            write.layer(layer, k, v, offsets)
        write.commit()                                   without it nothing has happened

One thread owns a cache. B handles of a batch, H heads, P pages.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tzgen.ops import jagged
from tzgen.ops.hstu_attention_cached import CachedKV


class CacheFull(RuntimeError):
    """A write needs more pages than are free; nothing was changed."""

    def __init__(self, needed: int, free: int, total: int) -> None:
        self.needed, self.free, self.total = needed, free, total
        super().__init__(
            f"the KV cache has {free} free pages of {total}, and the write needs {needed}: free "
            "sequences first, or give the cache more memory"
        )


@dataclass(frozen=True)
class CacheShape:
    """What the pages of a cache hold; `timestamps` where the mask or the bias reads time."""

    num_layers: int
    num_heads: int
    attention_dim: int
    hidden_dim: int
    page_size: int = 64
    dtype: torch.dtype = torch.float32
    timestamps: bool = False

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in all layers."""
        widths = self.attention_dim + self.hidden_dim
        token = self.num_layers * self.num_heads * widths * self.dtype.itemsize
        return self.page_size * (token + (8 if self.timestamps else 0))

    def pages_of(self, tokens: int) -> int:
        """Pages that hold `tokens` tokens of one sequence."""
        return -(-tokens // self.page_size)


@dataclass
class _Sequence:
    length: int = 0
    pages: list[int] = field(default_factory=list)


class PagedKVCache:
    """A pool of pages and the sequences in it. Memory is taken once, all of it, when it is made."""

    def __init__(
        self, shape: CacheShape, *, num_pages: int, device: torch.device | str = "cpu"
    ) -> None:
        if num_pages < 1 or shape.page_size < 1:
            raise ValueError(
                f"a KV cache needs room: got {num_pages} pages of {shape.page_size} tokens"
            )
        self.shape, self.num_pages, self.device = shape, num_pages, torch.device(device)
        self._k = [self._pool(shape.attention_dim) for _ in range(shape.num_layers)]
        self._v = [self._pool(shape.hidden_dim) for _ in range(shape.num_layers)]
        self._times = None
        if shape.timestamps:
            size = (num_pages, shape.page_size)
            self._times = torch.zeros(size, dtype=torch.int64, device=self.device)
        self._free = list(range(num_pages))  # a heap: low pages first keeps sequences in one piece
        self._sequences: dict[int, _Sequence] = {}
        self._next_handle = 0
        self._writing: set[int] = set()

    @classmethod
    def within(
        cls, shape: CacheShape, *, byte_budget: int, device: torch.device | str = "cpu"
    ) -> PagedKVCache:
        """The largest cache of at most `byte_budget` bytes."""
        pages = byte_budget // shape.page_bytes
        if pages < 1:
            raise ValueError(
                f"a byte budget of {byte_budget:,} holds no page: one of {shape.page_size} tokens "
                f"takes {shape.page_bytes:,} bytes in {shape.num_layers} layers; raise the budget "
                "or make pages smaller"
            )
        return cls(shape, num_pages=pages, device=device)

    def _pool(self, width: int) -> Tensor:
        shape = self.shape
        size = (self.num_pages, shape.page_size, shape.num_heads, width)
        return torch.empty(size, dtype=shape.dtype, device=self.device)

    @property
    def capacity_bytes(self) -> int:
        return self.num_pages * self.shape.page_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of pages that hold sequences or are reserved by an open write."""
        return self.used_pages * self.shape.page_bytes

    @property
    def used_pages(self) -> int:
        return self.num_pages - len(self._free)

    @property
    def free_pages(self) -> int:
        return len(self._free)

    @property
    def handles(self) -> tuple[int, ...]:
        return tuple(self._sequences)

    def create(self) -> int:
        """A new, empty sequence; its handle is never given again."""
        handle = self._next_handle
        self._next_handle += 1
        self._sequences[handle] = _Sequence()
        return handle

    def free(self, handle: int) -> None:
        """Give the sequence's pages back; the handle is invalid from now on."""
        if handle in self._writing:
            raise ValueError(f"sequence {handle} is being written: commit or leave the write first")
        for page in self._sequence(handle).pages:
            heapq.heappush(self._free, page)
        del self._sequences[handle]

    def length(self, handle: int) -> int:
        """Committed tokens."""
        return self._sequence(handle).length

    def bytes_of(self, handle: int) -> int:
        return len(self._sequence(handle).pages) * self.shape.page_bytes

    def pages_needed(self, handle: int | None, tokens: int) -> int:
        """Pages to take for `tokens` more tokens; None stands for a new sequence."""
        length = 0 if handle is None else self.length(handle)
        return self.shape.pages_of(length + tokens) - self.shape.pages_of(length)

    def views(self, handles: Sequence[int]) -> tuple[CachedKV, ...]:
        """The committed tokens of these sequences as a batch, one `CachedKV` a layer, no copy.

        They stay right until one of the sequences is freed; a later commit does not change them.
        """
        sequences = [self._sequence(handle) for handle in handles]
        lengths = [sequence.length for sequence in sequences]
        table, counts = self._table(sequences), torch.tensor(lengths, dtype=torch.int64)
        counts, longest = counts.to(self.device), max(lengths, default=0)
        return tuple(
            CachedKV(k, v, counts, longest, table, self._times)
            for k, v in zip(self._k, self._v, strict=True)
        )

    @contextmanager
    def write(self, handles: Sequence[int], counts: Sequence[int]) -> Iterator[Write]:
        """Reserve room for `counts[b]` more tokens of `handles[b]`; without commit, undo it."""
        write = self._begin(handles, counts)
        try:
            yield write
        finally:
            self._writing.difference_update(handles)
            if not write.committed:
                self._undo(handles, write.reserved)

    def _begin(self, handles: Sequence[int], counts: Sequence[int]) -> Write:
        sequences = [self._sequence(handle) for handle in handles]
        if len(set(handles)) < len(handles) or self._writing.intersection(handles):
            raise ValueError(f"a sequence can be written once at a time; got {list(handles)}")
        if len(counts) != len(handles) or any(count < 0 for count in counts):
            raise ValueError(f"write wants one count of new tokens a handle; got {list(counts)}")
        pairs = list(zip(handles, counts, strict=True))
        needed = [self.pages_needed(handle, count) for handle, count in pairs]
        if sum(needed) > self.free_pages:
            raise CacheFull(sum(needed), self.free_pages, self.num_pages)
        for sequence, pages in zip(sequences, needed, strict=True):
            sequence.pages.extend(heapq.heappop(self._free) for _ in range(pages))
        self._writing.update(handles)
        return Write(self, handles, counts, needed)

    def _undo(self, handles: Sequence[int], reserved: Sequence[int]) -> None:
        for handle, pages in zip(handles, reserved, strict=True):
            held = self._sequence(handle).pages
            for _ in range(pages):
                heapq.heappush(self._free, held.pop())

    def _commit(self, handles: Sequence[int], counts: Sequence[int]) -> None:
        for handle, count in zip(handles, counts, strict=True):
            self._sequence(handle).length += count

    def _sequence(self, handle: int) -> _Sequence:
        if handle not in self._sequences:
            raise ValueError(f"the KV cache has no sequence {handle}: it was freed, or never made")
        return self._sequences[handle]

    def _table(self, sequences: Sequence[_Sequence]) -> Tensor:
        """int64 [B, most pages]; places past a sequence's last page hold page 0."""
        widest = max((len(sequence.pages) for sequence in sequences), default=0)
        rows = [[*s.pages, *[0] * (widest - len(s.pages))] for s in sequences]
        table = torch.tensor(rows, dtype=torch.int64).view(len(sequences), widest)
        return table.to(self.device)

    def _run(self, handles: Sequence[int], counts: Sequence[int]) -> slice | None:
        """Where the next `counts[b]` tokens go in the flat pool, if that is one piece: what a few
        events of one sequence are, and a long one in pages that follow each other."""
        size, first, stop = self.shape.page_size, 0, 0
        for handle, count in zip(handles, counts, strict=True):
            sequence = self._sequence(handle)
            place, end = sequence.length, sequence.length + count
            while place < end:
                slot = sequence.pages[place // size] * size + place % size
                if stop > first and slot != stop:
                    return None
                first = slot if stop == first else first
                taken = min(size - place % size, end - place)
                place, stop = place + taken, slot + taken
        return slice(first, stop)

    def _slots(self, handles: Sequence[int], counts: Sequence[int]) -> Tensor:
        """Where the next `counts[b]` tokens go: int64 [sum of counts], places in the flat pool."""
        sequences = [self._sequence(handle) for handle in handles]
        lengths = torch.tensor([s.length for s in sequences], dtype=torch.int64)
        new = torch.tensor(list(counts), dtype=torch.int64)
        rows, places = jagged.place_index(new, sum(counts))
        places, size = places + lengths[rows], self.shape.page_size
        slots = self._table(sequences).cpu()[rows, places // size] * size + places % size
        return slots.to(self.device)


class Write:
    """New tokens of a batch of sequences on their way in; made by `PagedKVCache.write`."""

    def __init__(
        self,
        cache: PagedKVCache,
        handles: Sequence[int],
        counts: Sequence[int],
        reserved: Sequence[int],
    ) -> None:
        self.committed, self.reserved = False, list(reserved)
        self._cache, self._handles, self._counts = cache, list(handles), list(counts)
        run = cache._run(handles, counts)
        self._slots = cache._slots(handles, counts) if run is None else run
        self._offsets: Tensor | None = None
        self._source: Tensor | None = None
        self._missing = set(range(cache.shape.num_layers))
        self._needs_times = cache.shape.timestamps

    def layer(self, index: int, k: Tensor, v: Tensor, offsets: Tensor) -> None:
        """Store the first `counts[b]` tokens of each row of k [L, H, attention_dim], v [L, H, h].

        offsets int64 [B + 1]: the rows of k and v, which may be longer than what is kept (a row's
        candidates, say).
        """
        dtype = self._cache.shape.dtype
        if k.dtype != dtype or v.dtype != dtype:
            raise ValueError(f"this KV cache holds {dtype}; got k {k.dtype} and v {v.dtype}")
        for pool, values in ((self._cache._k[index], k), (self._cache._v[index], v)):
            self._put(pool, values, offsets)
        self._missing.discard(index)

    def timestamps(self, times: Tensor, offsets: Tensor) -> None:
        """Store times int64 [L] beside the tokens; rows as in `layer`."""
        if self._cache._times is None:
            raise ValueError("this KV cache was made without timestamps (CacheShape.timestamps)")
        self._put(self._cache._times, times, offsets)
        self._needs_times = False

    def commit(self) -> None:
        """Make the tokens part of their sequences, in all layers at once."""
        if self.committed:
            raise ValueError("this write was committed before")
        if self._missing or self._needs_times:
            times = ["timestamps"] if self._needs_times else []
            missing = ", ".join([*(f"layer {i}" for i in sorted(self._missing)), *times])
            raise ValueError(f"a write is committed as a whole, and lacks {missing}")
        self._cache._commit(self._handles, self._counts)
        self.committed = True

    def _put(self, pool: Tensor, values: Tensor, offsets: Tensor) -> None:
        if offsets is not self._offsets:  # the same for all layers: looked at once
            self._source, self._offsets = self._source_of(offsets), offsets
        if self._source is not None:
            values = values.index_select(0, self._source)
        flat = pool.flatten(0, 1)
        if isinstance(self._slots, slice):
            flat[self._slots] = values
        else:
            flat.index_copy_(0, self._slots, values)

    def _source_of(self, offsets: Tensor) -> Tensor | None:
        """Which tokens are kept; None where all are."""
        lengths = offsets.diff().tolist()
        if len(lengths) != len(self._counts) or any(
            length < count for length, count in zip(lengths, self._counts, strict=True)
        ):
            raise ValueError(f"the write keeps {self._counts} tokens; the rows have {lengths}")
        if lengths == self._counts:
            return None
        counts = torch.tensor(self._counts, dtype=torch.int64, device=offsets.device)
        rows, places = jagged.place_index(counts, sum(self._counts))
        return offsets[rows] + places
