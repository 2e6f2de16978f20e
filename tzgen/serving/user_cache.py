# SPDX-License-Identifier: Apache-2.0
"""Keys and values of users kept between requests, in a byte budget, least recently used out first.

An entry belongs to (user, model version): another version never hits. It remembers how many events
of the user's history it holds and a digest of all that their states were computed from, so that it
is used only where these events start the present history:

    HIT       the present history is the cached one: nothing to encode
    APPEND    the cached events are its first ones, and the model's states are append-stable
    CHANGED   something else, a window that slid for instance: encode anew
    MISS      no entry

    with cache.request(users, version, histories) as request:
        with request.write(new_tokens) as write:              evicts others, or CacheBudgetError
            ... encode histories[b] from event request.cached[b] on, write.layer(...)
            write.commit()
        ... score against request.views()

The cache knows no model: what `write` is given is what `views` returns. One thread owns it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from tzgen.errors import UserError
from tzgen.modules.kv_cache import PagedKVCache, Write
from tzgen.ops.hstu_attention_cached import CachedKV

HIT, APPEND, CHANGED, MISS = "HIT", "APPEND", "CHANGED", "MISS"


class CacheBudgetError(UserError):
    """Users that one request needs at once do not fit the cache's byte budget."""


@dataclass(frozen=True)
class History:
    """All that the states of a user's cached tokens depend on, but the model.

    events: columns [n, ...] of one length, oldest event first: ids, timestamps, actions, ....
    context: what they depend on beside the events: contextual features, and for a model that is
    not append-stable also the time of the request.
    """

    events: tuple[Tensor, ...]
    context: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if len({column.size(0) for column in self.events}) != 1:
            sizes = [column.size(0) for column in self.events]
            raise ValueError(f"a history is columns of one number of events; got {sizes}")

    def __len__(self) -> int:
        return self.events[0].size(0)

    def digest(self, count: int) -> bytes:
        """Of the context and the first `count` events."""
        parts = [*self.context, *(column[:count] for column in self.events)]
        state = hashlib.blake2b(digest_size=16)
        for part in parts:
            state.update(f"{part.dtype}{tuple(part.shape)}".encode())
            state.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return state.digest()


@dataclass(frozen=True)
class UserCacheStatistics:
    """Counts since the cache was made; bytes and users as they are now."""

    hits: int
    appends: int
    changed: int
    misses: int
    evictions: int
    reused_events: int
    new_events: int
    users: int
    used_bytes: int
    capacity_bytes: int


@dataclass
class _Entry:
    handle: int
    events: int
    digest: bytes


@dataclass(frozen=True)
class _Need:
    """Pages that a user's new tokens take, and with those the user has."""

    user: str
    pages: int
    all_pages: int


Key = tuple[str, str]  # user, model version


class UserCache:
    """`append_stable` says of the model that later events change no earlier state (STU option)."""

    def __init__(self, pages: PagedKVCache, *, append_stable: bool) -> None:
        self.pages, self.append_stable = pages, append_stable
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()  # least recently used first
        self._in_use: set[Key] = set()
        self._counts: Counter[str] = Counter()

    @contextmanager
    def request(
        self, users: Sequence[str], version: str, histories: Sequence[History]
    ) -> Iterator[Request]:
        """The users of one batch, which nothing evicts until the block ends."""
        keys = [(user, version) for user in users]
        if len(keys) != len(histories):
            raise ValueError(f"{len(keys)} users, but {len(histories)} histories")
        if len(set(keys)) < len(keys) or self._in_use.intersection(keys):
            twice = sorted({key[0] for key in keys if keys.count(key) > 1 or key in self._in_use})
            raise UserError(
                f"user {', '.join(twice)} is in this request, or in open ones, twice: a user's "
                "cache serves one row at a time; put the rows into requests of their own"
            )
        self._in_use.update(keys)
        try:
            kinds = [self._find(*pair) for pair in zip(keys, histories, strict=True)]
            yield Request(self, keys, histories, kinds)
        finally:
            self._in_use.difference_update(keys)

    def statistics(self) -> UserCacheStatistics:
        count = self._counts
        return UserCacheStatistics(
            hits=count[HIT],
            appends=count[APPEND],
            changed=count[CHANGED],
            misses=count[MISS],
            evictions=count["evictions"],
            reused_events=count["reused"],
            new_events=count["new"],
            users=len(self._entries),
            used_bytes=self.pages.used_bytes,
            capacity_bytes=self.pages.capacity_bytes,
        )

    def keep_only(self, version: str) -> int:
        """Forget all other versions, after a model swap; returns how many entries went."""
        old = [key for key in self._entries if key[1] != version and key not in self._in_use]
        for key in old:
            self._forget(key)
        return len(old)

    def forget(self, user: str) -> int:
        """Forget one user in all versions; returns how many entries went."""
        mine = [key for key in self._entries if key[0] == user]
        for key in mine:
            if key in self._in_use:
                raise UserError(f"user {user} is in an open request: end it first")
            self._forget(key)
        return len(mine)

    def _find(self, key: Key, history: History) -> str:
        """HIT, APPEND, CHANGED or MISS; the entry becomes the most recently used."""
        entry = self._entries.get(key)
        kind = MISS
        if entry is not None:
            self._entries.move_to_end(key)
            starts = entry.events <= len(history) and entry.digest == history.digest(entry.events)
            kind = HIT if starts and entry.events == len(history) else CHANGED
            if starts and entry.events < len(history) and self.append_stable:
                kind = APPEND
        reused = entry.events if entry is not None and kind in (HIT, APPEND) else 0
        self._counts.update({kind: 1, "reused": reused, "new": len(history) - reused})
        return kind

    def _forget(self, key: Key) -> None:
        self.pages.free(self._entries.pop(key).handle)

    def _make_room(self, need: Sequence[_Need]) -> None:
        """Evict until the pages that are needed are free, or refuse."""
        total = sum(one.pages for one in need)
        others = [key for key in self._entries if key not in self._in_use]
        room = self.pages.free_pages + sum(self._pages_of(key) for key in others)
        if total > room:
            raise CacheBudgetError(self._over_budget(need, self.pages.num_pages - room))
        for key in others:
            if self.pages.free_pages >= total:
                break
            self._forget(key)
            self._counts["evictions"] += 1

    def _pages_of(self, key: Key) -> int:
        return self.pages.bytes_of(self._entries[key].handle) // self.pages.shape.page_bytes

    def _over_budget(self, need: Sequence[_Need], held: int) -> str:
        pages, page_bytes = self.pages.num_pages, self.pages.shape.page_bytes
        budget = f"the cache holds {pages} ({pages * page_bytes:,} bytes)"
        for one in need:
            if one.all_pages > pages:
                size = one.all_pages * page_bytes
                return (
                    f"user {one.user} alone needs {one.all_pages} pages ({size:,} bytes) of the KV "
                    f"cache, and {budget}: raise its byte budget, or shorten histories"
                )
        return (
            f"the request's {len(need)} users need {sum(one.pages for one in need)} more pages of "
            f"the KV cache beside {held} in use by open requests, and {budget}: send fewer users "
            "at a time, or raise its byte budget"
        )


class Request:
    """Users of one batch and what the cache has of them; made by `UserCache.request`.

    kinds: HIT, APPEND, CHANGED or MISS of each user. cached: how many events of each present
    history are held; the rest is to be encoded and written, unless all is there (`complete`).
    """

    def __init__(
        self,
        cache: UserCache,
        keys: Sequence[Key],
        histories: Sequence[History],
        kinds: Sequence[str],
    ) -> None:
        entries = [
            cache._entries[key] if kind in (HIT, APPEND) else None
            for key, kind in zip(keys, kinds, strict=True)
        ]
        self.kinds = tuple(kinds)
        self.complete = all(kind == HIT for kind in kinds)
        self.cached = tuple(0 if entry is None else entry.events for entry in entries)
        self._handles = [None if entry is None else entry.handle for entry in entries]
        self._cache, self._keys, self._histories = cache, list(keys), list(histories)
        self._written = False

    def views(self) -> tuple[CachedKV, ...]:
        """The users' tokens, one `CachedKV` a layer; inside a first write they have length 0."""
        absent = [
            key[0] for key, handle in zip(self._keys, self._handles, strict=True) if handle is None
        ]
        if absent:
            raise ValueError(f"nothing is cached of user {', '.join(absent)}: write first")
        return self._cache.pages.views([h for h in self._handles if h is not None])

    @contextmanager
    def write(self, tokens: Sequence[int]) -> Iterator[Write]:
        """Add `tokens[b]` tokens to each user; once committed, they stand for the whole history.

        Entries that the present history contradicts go first, then those of other users, the least
        recently used ones. A write that is left without commit adds nothing.
        """
        cache, pages = self._cache, self._cache.pages
        if self._written:
            raise ValueError("this request was written before: its users' histories are cached")
        for key, kind in zip(self._keys, self.kinds, strict=True):
            if kind == CHANGED and key in cache._entries:
                cache._forget(key)
        cache._make_room(self._need(tokens))
        created = [row for row, handle in enumerate(self._handles) if handle is None]
        for row in created:
            self._handles[row] = pages.create()
        handles = [handle for handle in self._handles if handle is not None]
        write = None
        try:
            with pages.write(handles, tokens) as write:
                yield write
        finally:
            if write is not None and write.committed:
                self._keep(handles)
            else:
                for row in created:
                    pages.free(handles[row])
                    self._handles[row] = None

    def _need(self, tokens: Sequence[int]) -> list[_Need]:
        pages, out = self._cache.pages, []
        for key, handle, count in zip(self._keys, self._handles, tokens, strict=True):
            held = 0 if handle is None else pages.length(handle)
            new = pages.pages_needed(handle, count)
            out.append(_Need(key[0], new, pages.shape.pages_of(held + count)))
        return out

    def _keep(self, handles: Sequence[int]) -> None:
        """Enter what was written; the present histories are what the cache now holds."""
        self._written = True
        entries = self._cache._entries
        for key, handle, history in zip(self._keys, handles, self._histories, strict=True):
            entries[key] = _Entry(handle, len(history), history.digest(len(history)))
            entries.move_to_end(key)
