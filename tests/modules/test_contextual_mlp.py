# SPDX-License-Identifier: Apache-2.0
"""Projections per user: options, shared weights of several parts, dropout; values elsewhere."""

from __future__ import annotations

import pytest
import torch

from tzgen.config.options import fields_match
from tzgen.modules.contextual_mlp import (
    GRContextualizedMLPOptions,
    GRParameterizedContextualizedMLPOptions,
    GRSimpleContextualizedMLPOptions,
    ParameterizedContextualizedMLP,
    create_contextualized_mlp,
)
from tzgen.protos import module_pb2


def parameterized(dropout: float = 0.0, contextual: int = 6) -> ParameterizedContextualizedMLP:
    return ParameterizedContextualizedMLP(
        GRParameterizedContextualizedMLPOptions(4, dropout),
        in_features=3,
        out_features=5,
        contextual_features=contextual,
    )


def test_options_are_the_schema() -> None:
    for cls, message in (
        (GRSimpleContextualizedMLPOptions, module_pb2.GRSimpleContextualizedMLP),
        (GRParameterizedContextualizedMLPOptions, module_pb2.GRParameterizedContextualizedMLP),
        (GRContextualizedMLPOptions, module_pb2.GRContextualizedMLP),
    ):
        assert fields_match(cls, message.DESCRIPTOR) == []


def test_dropout_makes_one_set_of_weights_for_all_parts_of_a_row() -> None:
    mlp = parameterized(dropout=0.5).train()
    contextual, x = torch.randn(2, 6), torch.randn(4, 3)
    offsets = torch.tensor([0, 2, 4])
    first, second = mlp([(x, offsets), (x, offsets)], contextual)
    assert torch.equal(first, second)
    assert not torch.equal(mlp([(x, offsets)], contextual)[0], first)


def test_other_users_weights_are_other() -> None:
    mlp = parameterized().eval()
    x = torch.randn(1, 3).expand(2, -1).contiguous()
    out = mlp([(x, torch.tensor([0, 1, 2]))], torch.randn(2, 6))[0]
    assert not torch.isclose(out[0], out[1]).all()


def test_refuses() -> None:
    with pytest.raises(ValueError, match="group contextual"):
        parameterized(contextual=0)
    with pytest.raises(ValueError, match="needs the contextual"):
        parameterized()([(torch.randn(1, 3), torch.tensor([0, 1]))], None)
    with pytest.raises(ValueError, match="chooses nothing"):
        create_contextualized_mlp(
            GRContextualizedMLPOptions(None), in_features=1, out_features=1, contextual_features=0
        )
