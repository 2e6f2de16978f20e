# SPDX-License-Identifier: Apache-2.0
"""Random lives of users against recomputing everything: a two-layer toy over the real op.

Prefill, append and score in ragged batches, eviction under a small budget, failures in the middle,
histories that change, and weight swaps, in any order. Whatever is free is filled with NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from tzgen.modules.kv_cache import CacheShape, PagedKVCache, Write
from tzgen.ops.hstu_attention import MaskSpec, hstu_attention_reference
from tzgen.ops.hstu_attention_cached import CachedKV, hstu_attention_cached
from tzgen.serving.user_cache import CacheBudgetError, History, Request, UserCache

LAYERS, HEADS, WIDTH, PAGE = 2, 2, 3, 4
DIM = HEADS * WIDTH
SHAPE = CacheShape(LAYERS, HEADS, WIDTH, WIDTH, PAGE, torch.float64, timestamps=True)
USERS = ("ann", "bob", "cid", "dee")
MASK = MaskSpec(contextual_len=1, append_stable=True)
Events = list[tuple[int, int]]  # (item, time)


class Toy:
    """Two layers of x + attention(x W); items and times are embedded, one contextual token."""

    def __init__(self, seed: int) -> None:
        make = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=make, dtype=torch.float64)

        self.items, self.context = normal(20, DIM), normal(len(USERS), DIM)
        self.weights = [normal(DIM, 3 * DIM) for _ in range(LAYERS)]
        self.options = {
            "alpha": 0.7,
            "divisor": 4.0,
            "mask": MASK,
            "position_bias": normal(HEADS, 7),
            "time_bias": normal(1, 12),
        }

    def tokens(self, user: str, events: Events, first: int) -> tuple[Tensor, Tensor]:
        """Tokens of events from `first` on, the context before event 0; and their times."""
        x = self.items[[item for item, _ in events[first:]]]
        times = [time for _, time in events[first:]]
        if first == 0:
            x = torch.cat([self.context[USERS.index(user)][None], x])
            times = [0, *times]
        return x, torch.tensor(times, dtype=torch.int64)

    def project(self, layer: int, x: Tensor) -> tuple[Tensor, ...]:
        parts = (x @ self.weights[layer]).split(DIM, dim=1)
        return tuple(part.unflatten(1, (HEADS, WIDTH)) for part in parts)

    def run(
        self,
        x: Tensor,
        times: Tensor,
        offsets: Tensor,
        views: Sequence[CachedKV],
        num_targets: Tensor | None,
        write: Write | None,
    ) -> Tensor:
        for layer, view in enumerate(views):
            q, k, v = self.project(layer, x)
            out = hstu_attention_cached(
                q,
                k,
                v,
                offsets,
                view,
                max_len=x.size(0),
                num_targets=num_targets,
                timestamps=times,
                **self.options,  # type: ignore[arg-type]
            )
            if write is not None:
                write.layer(layer, k, v, offsets)
            x = x + out.flatten(1)
        return x

    def recompute(self, user: str, events: Events, candidates: Events) -> Tensor:
        """States of the candidates from nothing."""
        x, times = self.tokens(user, [*events, *candidates], 0)
        for layer in range(LAYERS):
            q, k, v = self.project(layer, x)
            out = hstu_attention_reference(
                q,
                k,
                v,
                torch.tensor([0, x.size(0)]),
                num_targets=torch.tensor([len(candidates)]),
                timestamps=times,
                **self.options,  # type: ignore[arg-type]
            )
            x = x + out.flatten(1)
        return x[x.size(0) - len(candidates) :]


class Lost(RuntimeError):
    """A failure in the middle of a request."""


class Lives(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.histories: dict[str, Events] = {user: [] for user in USERS}
        self.clock, self.version = 1_000, 0
        self.models = [Toy(0), Toy(1)]

    @initialize(pages=st.integers(2, 9))
    def start(self, pages: int) -> None:
        self.cache = UserCache(PagedKVCache(SHAPE, num_pages=pages), append_stable=True)
        self.poison()

    def poison(self) -> None:
        free = self.cache.pages._free
        for pool in (*self.cache.pages._k, *self.cache.pages._v):
            pool[free] = torch.nan

    @rule(user=st.sampled_from(USERS), items=st.lists(st.integers(0, 19), max_size=7))
    def events_happen(self, user: str, items: list[int]) -> None:
        for item in items:
            self.clock += 1 + item * item
            self.histories[user].append((item, self.clock))

    @rule(user=st.sampled_from(USERS))
    def the_window_slides(self, user: str) -> None:
        self.histories[user] = self.histories[user][-10:]

    @rule(user=st.sampled_from(USERS), place=st.integers(0, 5))
    def an_event_is_corrected(self, user: str, place: int) -> None:
        if place < len(self.histories[user]):
            item, time = self.histories[user][place]
            self.histories[user][place] = ((item + 1) % 20, time)

    @rule()
    def weights_are_swapped(self) -> None:
        self.version += 1

    @rule()
    def old_versions_go(self) -> None:
        self.cache.keep_only(f"v{self.version}")
        self.poison()

    @rule(
        users=st.lists(st.sampled_from(USERS), min_size=1, max_size=3, unique=True),
        counts=st.lists(st.integers(0, 5), min_size=3, max_size=3),
        fails=st.sampled_from([None, None, None, 0, 1, 2]),
    )
    def candidates_are_scored(self, users: list[str], counts: list[int], fails: int | None) -> None:
        """The states of the candidates are those of the whole row, or the request fails."""
        model = self.models[self.version % 2]
        offered = [[((7 * i + 3) % 20, self.clock + i) for i in range(n)] for n in counts]
        try:
            with self.cache.request(
                users,
                f"v{self.version}",
                [history_of(user, self.histories[user]) for user in users],
            ) as request:
                self.encode(model, request, users, fails)
                self.poison()
                got = self.score(model, request, users, offered)
        except CacheBudgetError:
            needed = sum(SHAPE.pages_of(1 + len(self.histories[user])) for user in users)
            assert needed > self.cache.pages.num_pages, "refused although it fits"
            return
        except Lost:
            self.poison()
            return
        for user, states, candidates in zip(users, got, offered, strict=False):
            want = model.recompute(user, self.histories[user], candidates)
            torch.testing.assert_close(states, want, rtol=1e-10, atol=1e-10)

    def encode(self, model: Toy, request: Request, users: list[str], fails: int | None) -> None:
        """Write what is missing of each user, the context too unless something is cached."""
        if request.complete:
            return
        parts = []
        for user, done, kind in zip(users, request.cached, request.kinds, strict=True):
            x, times = model.tokens(user, self.histories[user], done)
            context = done == 0 and kind in ("HIT", "APPEND")
            parts.append((x[1:], times[1:]) if context else (x, times))
        new = [x.size(0) for x, _ in parts]
        offsets = torch.tensor([0, *new]).cumsum(0)
        x, times = (torch.cat(side) for side in zip(*parts, strict=True))
        with request.write(new) as write:
            if fails == 0:
                raise Lost
            model.run(x, times, offsets, request.views(), None, write)
            write.timestamps(times, offsets)
            if fails == 1:
                raise Lost
            write.commit()
        if fails == 2:
            raise Lost

    def score(
        self, model: Toy, request: Request, users: list[str], offered: list[Events]
    ) -> tuple[Tensor, ...]:
        candidates = offered[: len(users)]
        x = torch.cat([model.items[[item for item, _ in part]] for part in candidates])
        times = torch.tensor([t for part in candidates for _, t in part], dtype=torch.int64)
        counts = torch.tensor([len(part) for part in candidates])
        offsets = torch.tensor([0, *counts]).cumsum(0)
        states = model.run(x, times, offsets, request.views(), counts, None)
        return states.split(counts.tolist())

    @invariant()
    def the_pages_add_up(self) -> None:
        if not hasattr(self, "cache"):
            return
        pages = self.cache.pages
        for handle in pages.handles:
            used = SHAPE.pages_of(pages.length(handle))
            assert len(pages._sequence(handle).pages) == used, "reserved pages were not given back"
        held = [page for h in pages.handles for page in pages._sequence(h).pages]
        assert len(held) == len(set(held)) == pages.used_pages
        assert len(pages.handles) == self.cache.statistics().users


def history_of(user: str, events: Events) -> History:
    items = torch.tensor([item for item, _ in events], dtype=torch.int64)
    times = torch.tensor([time for _, time in events], dtype=torch.int64)
    return History((items, times), (torch.tensor([USERS.index(user)]),))


Lives.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestLives = Lives.TestCase


@pytest.mark.slow
def test_many_lives() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Lives,
        settings=settings(max_examples=400, stateful_step_count=50, deadline=None, database=None),
    )
