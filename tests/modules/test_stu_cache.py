# SPDX-License-Identifier: Apache-2.0
"""Encode once, score and append against the cache: equal to the forward over everything."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from dense_hstu import User, batch_events, random_users
from hstu_configs import INTERLEAVE, PARAMETERIZED, VARIANTS, hstu, preprocessor
from torch import Tensor

from tzgen.models.hstu_options import hstu_options
from tzgen.modules import stu
from tzgen.modules.sequence import Events
from tzgen.modules.stu_cache import (
    EncodedHistory,
    candidate_chunks,
    continued,
    joined,
    share_rows,
)
from tzgen.modules.transducer import HSTUTransducer
from tzgen.ops import native, stu_cached
from tzgen.ops.hstu_attention_cached import CachedKV
from tzgen.protos import module_pb2

SIZES = [(5, 3), (0, 2), (9, 1), (4, 0), (1, 7), (0, 0)]
STABLE = {
    "plain": hstu("append_stable: true", positions=""),
    "biased": hstu("append_stable: true relative_bias {}", positions=""),
    "paper": hstu("preset: PAPER append_stable: true", positions=""),
    "interleaved": hstu(
        "append_stable: true relative_bias {}", positions="", inputs=preprocessor(INTERLEAVE)
    ),
    "parameterized": hstu(
        "append_stable: true", positions="", inputs=preprocessor(mlp=PARAMETERIZED)
    ),
    "window": hstu("append_stable: true max_attn_len: 3", positions=""),
    "semi-local": hstu("append_stable: true sla_k1: 2 sla_k2: 4", positions=""),
    "mtgr": hstu("append_stable: true relative_bias {}", positions="", extra="mtgr {}"),
    "group norm": hstu("append_stable: true use_group_norm: true", positions=""),
}


@pytest.fixture(params=["one call", "three ops"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The two ways that new tokens go through layers."""
    if request.param == "three ops":
        monkeypatch.setattr(stu_cached, "MAX_TOKENS", -1)
    return str(request.param)


def make(
    message: module_pb2.HSTU, *, contextual: int = 2, dtype: torch.dtype = torch.float64
) -> HSTUTransducer:
    torch.manual_seed(5)
    transducer = HSTUTransducer(
        hstu_options(message),
        uih_dim=6,
        candidate_dim=8,
        contextual_dim=4 if contextual else 0,
        contextual_len=contextual,
        max_seq_len=24,
        kernel="PYTORCH",
    ).to(dtype)
    with torch.no_grad():
        for parameter in transducer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return transducer.eval()


def users(sizes: list[tuple[int, int]] = SIZES, contextual: int = 2) -> list[User]:
    shape = (contextual, 4) if contextual else (0, 0)
    return random_users(sizes, candidate_dim=8, contextual=shape, seed=3)


def between(people: list[User], start: list[int], stop: list[int]) -> list[User]:
    """Events [start, stop) of each user."""
    return [
        replace(
            user,
            uih=user.uih[a:b],
            times=user.times[a:b],
            actions=user.actions[a:b],
            watchtimes=user.watchtimes[a:b],
        )
        for user, a, b in zip(people, start, stop, strict=True)
    ]


def scored(transducer: HSTUTransducer, events: Events, cache: EncodedHistory, size: int) -> Tensor:
    """States of all candidates, in chunks of `size`."""
    return torch.cat([transducer.score(chunk, cache) for chunk in candidate_chunks(events, size)])


@torch.no_grad()
@pytest.mark.parametrize("name", [*VARIANTS, *(f"stable {name}" for name in STABLE)])
def test_scoring_against_the_cache_is_the_forward(name: str, way: str) -> None:
    message = VARIANTS.get(name) or STABLE[name.removeprefix("stable ")]
    transducer = make(message)
    events = batch_events(users())
    want = transducer(events)
    cache = transducer.encode_user(events)
    for size in (1, 2, 100):
        got = scored(transducer, events, cache, size)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    rough = make(message, dtype=torch.float32)
    single = batch_events(
        [
            replace(
                u,
                uih=u.uih.float(),
                candidates=u.candidates.float(),
                contextual=u.contextual.float(),
            )
            for u in users()
        ]
    )
    got = scored(rough, single, rough.encode_user(single), 2)
    torch.testing.assert_close(got, rough(single), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "contextual"),
    [*((name, 2) for name in STABLE), *((name, 0) for name in STABLE if name != "parameterized")],
)
def test_appending_is_recomputing(name: str, contextual: int, way: str) -> None:
    """In several steps of other lengths in every row, none among them."""
    transducer = make(STABLE[name], contextual=contextual)
    people = users([(9, 2), (4, 1), (6, 3), (0, 1)], contextual)
    steps = [[2, 0, 6, 0], [2, 3, 6, 0], [3, 4, 6, 0], [9, 4, 6, 0]]
    cache = transducer.encode_user(batch_events(between(people, [0] * 4, steps[0])))
    for before, after in pairwise(steps):
        delta = transducer.append(batch_events(between(people, before, after)), cache)
        cache = cache.extended(delta)
        partial = batch_events(between(people, [0] * 4, after))
        fresh = transducer.encode_user(partial)
        assert torch.equal(cache.lengths, fresh.lengths)
        assert torch.equal(cache.newest, fresh.newest)
        for ours, theirs in zip(cache.layers, fresh.layers, strict=True):
            torch.testing.assert_close(ours.k, theirs.k, rtol=0, atol=1e-10)
            torch.testing.assert_close(ours.v, theirs.v, rtol=0, atol=1e-10)
            assert ours.max_len >= int(ours.lengths.max())
        got = transducer.score(partial, cache)
        torch.testing.assert_close(got, transducer(partial), rtol=0, atol=1e-10)


@torch.no_grad()
def test_ages_are_measured_from_the_request_that_the_cache_was_made_for() -> None:
    transducer = make(hstu())
    events = batch_events(users())
    later = replace(events, query_time=events.query_time + 86_400)
    want, other = transducer(later), transducer(events)
    assert not torch.allclose(want, other)
    got = transducer.score(events, transducer.encode_user(later))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@torch.no_grad()
def test_the_cache_does_not_read_the_candidates() -> None:
    transducer = make(hstu())
    events = batch_events(users())
    assert events.candidates is not None
    other = replace(events, candidates=events.candidates + 1)
    first, second = transducer.encode_user(events), transducer.encode_user(other)
    for ours, theirs in zip(first.layers, second.layers, strict=True):
        assert torch.equal(ours.k, theirs.k) and torch.equal(ours.v, theirs.v)


def test_training_mode_and_truncated_appends_are_refused() -> None:
    transducer = make(hstu(positions=""))
    events = batch_events(users())
    with pytest.raises(ValueError, match=r"eval\(\)"):
        transducer.train().encode_user(events)
    cut = hstu(positions="", extra="attn_truncation_split_layer: 1 attn_truncation_tail_len: 3")
    transducer = make(cut)
    with torch.no_grad(), pytest.raises(ValueError, match="truncation"):
        transducer.append(events, transducer.encode_user(events))


def test_keys_do_not_hold_the_whole_projection() -> None:
    """k and v are copies: a view would keep u and q alive with them."""
    transducer = make(hstu())
    with torch.no_grad():
        cache = transducer.encode_user(batch_events(users()))
    for layer in cache.layers:
        assert layer.k.untyped_storage().nbytes() == layer.k.nbytes
        assert layer.v.untyped_storage().nbytes() == layer.v.nbytes


def test_chunks_hold_every_candidate_once() -> None:
    events = batch_events(users([(1, 5), (2, 0), (0, 2), (3, 3)]))
    chunks = candidate_chunks(events, 4)
    counts = [chunk.num_candidates.tolist() for chunk in chunks]
    assert counts == [[4, 0, 0, 0], [1, 0, 2, 1], [0, 0, 0, 2]]
    for name in ("candidates", "candidate_timestamps"):
        assert torch.equal(torch.cat([getattr(c, name) for c in chunks]), getattr(events, name))
    assert {chunk.max_candidates for chunk in chunks} == {4}
    assert candidate_chunks(batch_events(users([(3, 0)])), 2) == []


def test_joining_lays_rows_behind_each_other() -> None:
    def cached(values: list[int], lengths: list[int]) -> CachedKV:
        k = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
        return CachedKV(k, k * 10, torch.tensor(lengths), max(lengths), None, torch.tensor(values))

    held, new = cached([1, 2, 3], [2, 0, 1]), cached([4, 5, 6], [1, 2, 0])
    other, fresh = cached([7], [0, 0, 1]), cached([8, 9], [0, 1, 1])  # behind a truncation, say
    out, same, last = joined((held, held, other), (new, new, fresh))
    assert share_rows((out, same)) and not share_rows((out, last))
    assert same.k.flatten().tolist() == out.k.flatten().tolist()
    assert last.k.flatten().tolist() == [8, 7, 9] and last.lengths.tolist() == [0, 1, 2]
    assert out.k.flatten().tolist() == [1, 2, 4, 5, 6, 3]
    assert out.v.flatten().tolist() == [10, 20, 40, 50, 60, 30]
    assert out.timestamps is not None and out.timestamps.tolist() == [1, 2, 4, 5, 6, 3]
    assert out.lengths.tolist() == [3, 2, 1] and out.max_len == 4
    paged = replace(cached([1], [1]), table=torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="pages"):
        joined((paged,), (paged,))


@torch.no_grad()
@pytest.mark.parametrize("name", ["plain", "mtgr", "interleaved"])
def test_states_are_those_of_the_forward(name: str, way: str) -> None:
    """prefill and append give the last layer's states as well, for models that read them."""
    transducer = make(STABLE[name])
    people = users([(6, 0), (3, 0)])
    tokens = transducer._placed(transducer.preprocessor(batch_events(people)))
    whole, caches = transducer.stack.prefill(tokens)
    torch.testing.assert_close(whole.x, transducer.stack(tokens).x, rtol=0, atol=1e-12)
    _, fewer = transducer.stack.prefill(tokens, states=False)
    for ours, theirs in zip(caches, fewer, strict=True):
        assert torch.equal(ours.k, theirs.k)
    new = continued(
        tokens.x[:3],
        torch.tensor([1, 2]),
        cached=tokens.lengths,
        targets=False,
        timestamps=tokens.timestamps.max().expand(3),
        query_time=tokens.query_time,
        max_new=2,
        contextual_len=2,
    )
    states, delta = transducer.stack.append(new, caches)
    assert states.x.shape == (3, 8) and len(delta) == 2
    before, _ = transducer.stack.append(new, caches, states=False)
    assert not torch.allclose(before.x, states.x)


@torch.no_grad()
@pytest.mark.skipif(not native.available(), reason="needs a C++ compiler")
def test_few_new_tokens_go_through_all_layers_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(x: Tensor, layers: list[object], *rest: object, **options: object) -> object:
        calls.append(len(layers))
        return stu_cached.stu_layers_cached(x, layers, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(stu, "stu_layers_cached", counted)
    transducer = make(STABLE["plain"])
    people = users([(6, 2), (3, 1)])
    cache = transducer.encode_user(batch_events(between(people, [0, 0], [4, 3])))
    assert calls == [2], "a short history as well"
    calls.clear()
    cache = cache.extended(transducer.append(batch_events(between(people, [4, 3], [6, 3])), cache))
    assert calls == [2]
    transducer.score(batch_events(people), cache)
    assert calls == [2, 2]
    transducer.stack.layers[0].kernel = "CPU_TORCH"
    transducer.score(batch_events(people), cache)
    assert calls == [2, 2]
