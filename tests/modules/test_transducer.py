# SPDX-License-Identifier: Apache-2.0
"""The transducer against a slow loop over users, and the invariances that ranking relies on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dense_hstu import User, batch_events, dense_transducer, random_users
from hstu_configs import INTERLEAVE, VARIANTS, hstu, preprocessor
from torch import Tensor

from tzgen.config.options import fields_match
from tzgen.models.hstu_options import hstu_options
from tzgen.modules.sequence import Events
from tzgen.modules.transducer import HSTUOptions, HSTUTransducer
from tzgen.protos import module_pb2

SIZES = [(5, 3), (0, 2), (9, 1), (4, 0), (1, 4)]
CONTEXTUAL = (2, 4)


def make(
    message: module_pb2.HSTU,
    *,
    candidate_dim: int = 8,
    contextual: tuple[int, int] = CONTEXTUAL,
    dtype: torch.dtype = torch.float64,
) -> tuple[HSTUTransducer, HSTUOptions]:
    """A transducer whose norms and biases are not at their neutral initial values."""
    options = hstu_options(message)
    transducer = HSTUTransducer(
        options,
        uih_dim=6,
        candidate_dim=candidate_dim,
        contextual_dim=contextual[1],
        contextual_len=contextual[0],
        max_seq_len=24,
        kernel="PYTORCH",
    ).to(dtype)
    with torch.no_grad():
        for parameter in transducer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return transducer, options


def users(sizes: list[tuple[int, int]] = SIZES, seed: int = 0) -> list[User]:
    return random_users(sizes, candidate_dim=8, contextual=CONTEXTUAL, seed=seed)


@pytest.mark.parametrize("name", VARIANTS)
def test_matches_the_loop_over_users(name: str) -> None:
    transducer, options = make(VARIANTS[name])
    people = users()
    out = transducer(batch_events(people))
    want = torch.cat([dense_transducer(transducer, options, user) for user in people])
    torch.testing.assert_close(out, want, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(out)
    names, parameters = zip(*transducer.named_parameters(), strict=True)
    got = torch.autograd.grad(out, parameters, weights, materialize_grads=True)
    truth = torch.autograd.grad(want, parameters, weights, materialize_grads=True)
    for which, ours, theirs in zip(names, got, truth, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-8, atol=1e-8, msg=lambda m, n=which: f"{n}: {m}"
        )


def test_without_contextual_features() -> None:
    transducer, options = make(hstu(), candidate_dim=6, contextual=(0, 0))
    people = random_users(SIZES)
    want = torch.cat([dense_transducer(transducer, options, user) for user in people])
    torch.testing.assert_close(transducer(batch_events(people)), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", VARIANTS)
def test_candidates_do_not_see_each_other(name: str) -> None:
    transducer, _ = make(VARIANTS[name])
    people = users()
    before = transducer(batch_events(people))
    people[0].candidates[1] += 3.0
    after = transducer(batch_events(people))
    same = torch.isclose(before, after, rtol=0, atol=1e-12).all(1)
    assert same.tolist() == [index != 1 for index in range(before.size(0))]


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_do_not_see_each_other(name: str) -> None:
    """Permuted batches give permuted outputs, and a row alone gives its rows of the batch."""
    transducer, _ = make(VARIANTS[name])
    people = users()
    parts = transducer(batch_events(people)).split([count for _, count in SIZES])
    order = [3, 0, 4, 2, 1]
    shuffled = transducer(batch_events([people[index] for index in order]))
    want = torch.cat([parts[index] for index in order])
    torch.testing.assert_close(shuffled, want, rtol=0, atol=1e-12)
    for user, part in zip(people, parts, strict=True):
        torch.testing.assert_close(transducer(batch_events([user])), part, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["interleaved", "production", "parameterized interleaved"])
def test_training_and_evaluation_agree(name: str) -> None:
    """Without dropout there is one function, interleaved or not."""
    transducer, _ = make(VARIANTS[name])
    events = batch_events(users())
    torch.testing.assert_close(transducer.train()(events), transducer.eval()(events))


@pytest.mark.parametrize("field", ["input_dropout_ratio", "output_dropout_ratio"])
def test_dropout_acts_in_training_only(field: str) -> None:
    message = hstu()
    setattr(message if field.startswith("input") else message.stu, field, 0.5)
    transducer, _ = make(message)
    events = batch_events(users())
    transducer.eval()
    assert torch.equal(transducer(events), transducer(events))
    assert not torch.equal(transducer.train()(events), transducer.eval()(events))


def test_events_after_the_request_have_no_effect_under_the_timestamp_mask() -> None:
    people = users([(6, 2)])
    times = people[0].times
    people[0].candidate_times = [times[2], times[4]]

    def run(message: module_pb2.HSTU) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        transducer, _ = make(message)
        events = batch_events(people)
        changed = events.uih.clone()
        changed[4:] += 2.0  # at the second request's time, and after it
        return transducer(events), transducer(replace(events, uih=changed))

    before, after = run(VARIANTS["mtgr"])
    torch.testing.assert_close(before, after, rtol=0, atol=1e-12)
    before, after = run(VARIANTS["mtgr norms only"])  # the mask off: the same change leaks
    assert not torch.isclose(before, after, atol=1e-6).all(1).any()


def test_an_earlier_event_matters_only_to_later_requests() -> None:
    transducer, _ = make(VARIANTS["mtgr"])
    people = users([(6, 2)])
    people[0].candidate_times = [people[0].times[3], people[0].times[5] + 1]
    events = batch_events(people)
    changed = events.uih.clone()
    changed[3] += 2.0  # at the first request, before the second
    before, after = transducer(events), transducer(replace(events, uih=changed))
    torch.testing.assert_close(before[0], after[0], rtol=0, atol=1e-12)
    assert not torch.isclose(before[1], after[1], atol=1e-6).all()


def test_group_norm_parameters_differ_by_domain_and_learn() -> None:
    transducer, _ = make(VARIANTS["mtgr"])
    transducer(batch_events(users())).square().sum().backward()
    for layer in transducer.stack.layers:
        for norm in (layer.input_norm, layer.output_norm):
            assert norm.weight.size(0) == 3
            assert norm.weight.grad is not None
    first = transducer.stack.layers[0].input_norm.weight.grad
    assert (first.abs().sum(1) > 0).all()


def test_append_stable_histories_do_not_look_ahead() -> None:
    """Appending events leaves the states of all earlier tokens alone; without the switch not."""
    person = users([(7, 2)])[0]
    shorter = replace(
        person,
        uih=person.uih[:5],
        times=person.times[:5],
        actions=person.actions[:5],
        watchtimes=person.watchtimes[:5],
    )

    def states(message: module_pb2.HSTU) -> tuple[Tensor, Tensor]:
        torch.manual_seed(2)
        transducer, _ = make(message)
        both = [transducer.encode(batch_events([user])) for user in (person, shorter)]
        return both[0].x[: 2 + 5], both[1].x[: 2 + 5]

    long, short = states(VARIANTS["append stable"])
    torch.testing.assert_close(long, short, rtol=0, atol=1e-12)
    for message in (hstu("relative_bias {}", positions=""), hstu(positions="")):
        long, short = states(message)
        assert not torch.isclose(long, short, atol=1e-6).all()


def test_max_len_is_only_a_bound() -> None:
    transducer, _ = make(VARIANTS["interleaved"])
    events = batch_events(users())
    looser = replace(events, max_uih_len=1000, max_candidates=50)
    assert torch.equal(transducer(events), transducer(looser))


CUTS = [name for name in VARIANTS if name.startswith("truncated")]


@pytest.mark.parametrize("name", CUTS)
def test_surplus_tokens_of_a_cut_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device is not asked how many tokens are left, all numbers are the same."""
    transducer, _ = make(VARIANTS[name])
    events = batch_events(users())

    def run() -> tuple[int, list[Tensor]]:
        out = transducer(events)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        gradients = torch.autograd.grad(out, list(transducer.parameters()), weights)
        return transducer.encode(events).x.size(0), [out, *gradients]

    exact, want = run()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    bound, got = run()
    assert bound > exact
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_cut_needs_layers_on_both_sides() -> None:
    with pytest.raises(ValueError, match="between 0 and 2"):
        make(hstu(extra="attn_truncation_split_layer: 2 attn_truncation_tail_len: 3"))


def test_half_a_truncation_is_none() -> None:
    _, options = make(hstu(extra="attn_truncation_split_layer: 1"))
    assert options.truncation is None


def test_options_are_the_fields_of_the_schema() -> None:
    assert fields_match(HSTUOptions, module_pb2.HSTU.DESCRIPTOR, ()) == []


@pytest.mark.parametrize("missing", ["candidates", "contextual", "actions"])
def test_a_missing_input_is_named(missing: str) -> None:
    transducer, _ = make(hstu())
    events: Events = replace(batch_events(users()), **{missing: None})
    with pytest.raises(ValueError, match=missing[:6]):
        transducer(events)


def test_interleaving_needs_actions() -> None:
    with pytest.raises(ValueError, match="set action_encoder"):
        make(hstu(inputs=preprocessor(INTERLEAVE, actions="")))
