# SPDX-License-Identifier: Apache-2.0
"""The history-only preprocessor, options, and parameters that each form owns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dense_hstu import batch_events, random_users
from google.protobuf import text_format
from hstu_configs import ACTIONS, INTERLEAVE, SIMPLE, older_spellings, preprocessor

from tzgen.config.options import fields_match, options
from tzgen.modules.preprocessors import (
    GRContextualInterleavePreprocessorOptions,
    GRContextualPreprocessorOptions,
    GRInputPreprocessorOptions,
    GRUIHPreprocessorOptions,
    InputPreprocessor,
    InputShape,
    create_input_preprocessor,
)
from tzgen.protos import module_pb2

SHAPE = InputShape(uih_dim=6, candidate_dim=6, contextual_dim=4, contextual_len=2, embedding_dim=8)


def make(text: str, shape: InputShape = SHAPE) -> InputPreprocessor:
    message = text_format.Parse(text, module_pb2.GRInputPreprocessor())
    return create_input_preprocessor(options(GRInputPreprocessorOptions, message), shape).double()


def history_only(contextual: tuple[int, int] = (2, 4)) -> tuple[list, object]:
    users = random_users([(3, 0), (0, 0), (2, 0)], contextual=contextual)
    return users, batch_events(users, candidates=None)


def test_options_are_the_schema() -> None:
    for cls, message in (
        (GRContextualPreprocessorOptions, module_pb2.GRContextualPreprocessor),
        (GRContextualInterleavePreprocessorOptions, module_pb2.GRContextualInterleavePreprocessor),
        (GRUIHPreprocessorOptions, module_pb2.GRUIHPreprocessor),
        (GRInputPreprocessorOptions, module_pb2.GRInputPreprocessor),
    ):
        older = older_spellings(message.DESCRIPTOR)
        assert fields_match(cls, message.DESCRIPTOR, older) == []


def test_uih_is_contextual_tokens_and_projected_events() -> None:
    pre = make(f"uih_preprocessor {{ {ACTIONS % SIMPLE} }}")
    users, events = history_only()
    tokens = pre(events)
    assert tokens.lengths.tolist() == [5, 2, 4] and not tokens.num_targets.any()
    assert tokens.targets.numel() == 0
    user = users[2]
    for index in range(2):
        action = pre.action_encoder(torch.tensor([user.actions[index]]))
        want = pre.content(user.uih[index]) + pre.action_mlp.mlp(action)[0]
        torch.testing.assert_close(tokens.x[tokens.history[3 + index]], want)
    want = user.contextual[1] @ pre.contextual_weight[1] + pre.contextual_bias[1, 0]
    torch.testing.assert_close(tokens.x[7 + 1], want)


def test_uih_of_the_models_width_is_taken_as_it_is() -> None:
    shape = replace(SHAPE, embedding_dim=6, contextual_len=0, contextual_dim=0)
    pre = make("uih_preprocessor {}", shape)
    assert not list(pre.parameters()) and not pre.reads_actions
    _, events = history_only((0, 0))
    assert torch.equal(pre(events).x, events.uih)


def test_uih_takes_no_candidates() -> None:
    users = random_users([(3, 1)], contextual=(2, 4))
    with pytest.raises(ValueError, match="takes no candidates"):
        make("uih_preprocessor {}")(batch_events(users))


def test_interleaving_owns_no_action_of_candidates() -> None:
    """It would be a parameter that never gets a gradient."""
    assert "action_encoder.dummy" in dict(make(preprocessor()).named_parameters())
    assert "action_encoder.dummy" not in dict(make(preprocessor(INTERLEAVE)).named_parameters())


@pytest.mark.parametrize("kind", ["contextual_preprocessor", INTERLEAVE])
def test_labels_cannot_reach_candidates(kind: str) -> None:
    """No input says what the user did with a candidate: actions are those of the history."""
    pre = make(preprocessor(kind))
    users = random_users([(3, 2)], contextual=(2, 4))
    events = batch_events(users)
    before = pre(events)
    after = pre(replace(events, actions=events.actions + 1))
    assert torch.equal(before.x[before.targets], after.x[after.targets])
    assert not torch.equal(before.x, after.x)


def test_every_parameter_learns() -> None:
    for text in (
        preprocessor(),
        preprocessor(INTERLEAVE),
        f"uih_preprocessor {{ {ACTIONS % SIMPLE} }}",
    ):
        pre = make(text)
        events = batch_events(random_users([(3, 2), (4, 1)], contextual=(2, 4)))
        if text.startswith("uih"):
            events = history_only()[1]
        out = pre(events).x
        (out * torch.randn_like(out)).sum().backward()
        for name, parameter in pre.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name


def test_refuses() -> None:
    with pytest.raises(ValueError, match="chooses nothing"):
        make("")
    with pytest.raises(ValueError, match="needs action_mlp"):
        make("uih_preprocessor { action_encoder { simple_action_encoder { action_weights: 1 } } }")
