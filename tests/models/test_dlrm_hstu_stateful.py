# SPDX-License-Identifier: Apache-2.0
"""Random lives of users in a paged cache, against the plain forward over their whole rows.

Prefill, append and score in ragged batches of the real model, writes that are given up, eviction,
and a pool that is too small, in any order. Pages that nobody holds are filled with NaN.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dense_hstu import User
from hstu_configs import INTERLEAVE, PARAMETERIZED, hstu, preprocessor
from hstu_model import config, groups, model, people
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tzgen.models.dlrm_hstu import DlrmHSTU
from tzgen.modules.kv_cache import CacheFull, PagedKVCache
from tzgen.modules.stu_cache import EncodedHistory, store
from tzgen.protos import module_pb2

MODELS = {
    "interleaved": hstu(
        "append_stable: true relative_bias {}",
        positions="",
        inputs=preprocessor(INTERLEAVE, mlp=PARAMETERIZED),
    ),
    "mtgr": hstu(
        "append_stable: true preset: PAPER", positions="", extra="mtgr { timestamp_mask: true }"
    ),
    "semi-local": hstu("append_stable: true sla_k1: 3 sla_k2: 4", positions=""),
    "window": hstu("append_stable: true max_attn_len: 3 use_group_norm: true", positions=""),
}
EVENTS, PAGE, PAGES = 9, 4, 14
NUM_USERS = 4
Counts = dict[int, int]


class Lives(RuleBasedStateMachine):
    """User u has had `shown[u]` of its events encoded, in sequence `handles[u]` of the cache."""

    message: module_pb2.HSTU

    @initialize(seed=st.integers(0, 3))
    def start(self, seed: int) -> None:
        self.model: DlrmHSTU = model(config(self.message)).eval()
        self.users = people([(EVENTS, 2), (EVENTS, 1), (EVENTS, 3), (EVENTS, 4)], seed=seed)
        stack = self.model.transducer.stack
        shape = stack.cache_shape(page_size=PAGE, dtype=torch.float64)
        self.cache = PagedKVCache(shape, num_pages=PAGES)
        self.handles: Counts = {}
        self.shown: Counts = {}

    def events(self, start: Counts, stop: Counts) -> list[User]:
        """Events [start, stop) of some users."""
        return [
            replace(
                self.users[u],
                uih=self.users[u].uih[start[u] : stop[u]],
                times=self.users[u].times[start[u] : stop[u]],
                actions=self.users[u].actions[start[u] : stop[u]],
                watchtimes=self.users[u].watchtimes[start[u] : stop[u]],
            )
            for u in stop
        ]

    def write(self, handles: Counts, encoded: EncodedHistory, commit: bool) -> bool:
        """Put what was encoded behind the sequences; False where it does not fit or is given up."""
        try:
            with self.cache.write(list(handles.values()), encoded.lengths.tolist()) as write:
                if commit:
                    store(encoded, write)
        except CacheFull:
            return False
        return commit

    def resumed(self, users: list[User], handles: Counts) -> EncodedHistory:
        return self.model.resumed(groups(users), self.cache.views(list(handles.values())))

    @rule(
        counts=st.dictionaries(
            st.integers(0, NUM_USERS - 1), st.integers(0, EVENTS), min_size=1, max_size=3
        ),
        commit=st.sampled_from([True, True, True, False]),
    )
    @torch.no_grad()
    def prefill(self, counts: Counts, commit: bool) -> None:
        new = {user: count for user, count in counts.items() if user not in self.handles}
        if not new:
            return
        encoded = self.model.encode(groups(self.events(dict.fromkeys(new, 0), new)))
        handles = {user: self.cache.create() for user in new}
        if self.write(handles, encoded, commit):
            self.handles.update(handles)
            self.shown.update(new)
        else:
            for handle in handles.values():
                self.cache.free(handle)

    @rule(
        more=st.dictionaries(
            st.integers(0, NUM_USERS - 1), st.integers(0, 4), min_size=1, max_size=4
        ),
        commit=st.sampled_from([True, True, True, False]),
    )
    @torch.no_grad()
    def append(self, more: Counts, commit: bool) -> None:
        handles = {user: self.handles[user] for user in more if user in self.handles}
        if not handles:
            return
        before = {user: self.shown[user] for user in handles}
        after = {user: min(before[user] + more[user], EVENTS) for user in handles}
        new = self.events(before, after)
        delta = self.model.append(groups(new), self.resumed(new, handles))
        if self.write(handles, delta, commit):
            self.shown.update(after)

    @rule(chosen=st.sets(st.integers(0, NUM_USERS - 1), min_size=1))
    @torch.no_grad()
    def score(self, chosen: set[int]) -> None:
        handles = {user: self.handles[user] for user in sorted(chosen) if user in self.handles}
        if not handles:
            return
        shown = {user: self.shown[user] for user in handles}
        whole = self.events(dict.fromkeys(handles, 0), shown)
        got = self.model.score(groups(whole), self.resumed(whole, handles))
        want = self.model(groups(whole))
        for task, expected in want.logits.items():
            torch.testing.assert_close(got.logits[task], expected, rtol=0, atol=1e-10)

    @rule(user=st.integers(0, NUM_USERS - 1))
    def evict(self, user: int) -> None:
        if user in self.handles:
            self.cache.free(self.handles.pop(user))
            del self.shown[user]

    @invariant()
    def nobody_reads_free_pages(self) -> None:
        if "cache" in self.__dict__:
            for page in self.cache._free:
                for pool in (*self.cache._k, *self.cache._v):
                    pool[page] = torch.nan

    @invariant()
    def pages_are_those_of_the_tokens(self) -> None:
        if "cache" in self.__dict__:
            contextual, per_event = 2, self.model.transducer.preprocessor.tokens_per_event
            for user, handle in self.handles.items():
                tokens = contextual + self.shown[user] * per_event
                assert self.cache.length(handle) == tokens
            held = sum(self.cache.bytes_of(handle) for handle in self.handles.values())
            assert self.cache.used_bytes == held


@pytest.mark.parametrize("name", MODELS)
def test_any_order_of_events_equals_recomputing(name: str) -> None:
    machine = type(f"Lives_{name}", (Lives,), {"message": MODELS[name]})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
