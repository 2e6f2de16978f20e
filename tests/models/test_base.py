# SPDX-License-Identifier: Apache-2.0
"""The contract of models: group rules, predict, helpers that read groups."""

from __future__ import annotations

import pytest
import torch
from google.protobuf.message import Message

from tzgen.embeddings import Groups, Ragged
from tzgen.errors import UserError
from tzgen.models.base import (
    GroupRule,
    Model,
    Outputs,
    integer_sequence,
    ragged_group,
    real_numbers,
)
from tzgen.protos import model_pb2


class Echo(Model):
    @classmethod
    def required_groups(cls, config: Message) -> tuple[GroupRule, ...]:
        return (
            GroupRule("all", ("DEEP",), "echo"),
            GroupRule("maybe", ("JAGGED_SEQUENCE",), "echo", required=False),
        )

    def forward(self, groups: Groups) -> Outputs:
        return Outputs({"a": groups["all"]})


class Anything(Echo):
    reads_any_group = True


def config(*names: str) -> model_pb2.ModelConfig:
    made = model_pb2.ModelConfig()
    made.mmoe.SetInParent()
    for name in names:
        made.feature_groups.add(group_name=name)
    return made


def test_group_rules() -> None:
    assert Echo.check(config("all")) == []
    (missing,) = Echo.check(config())
    assert "no group 'all'" in str(missing) and 'group_name: "all"' in missing.remedy
    (kind,) = Echo.check(config("all", "maybe"))
    assert kind.path == "model_config.feature_groups[1].group_type"
    (unread,) = Echo.check(config("all", "other"))
    assert "a group that mmoe reads: all, maybe" in unread.expected
    assert Anything.check(config("all", "other")) == []


def test_predict_is_forward_unless_a_model_decodes() -> None:
    model = Echo(model_pb2.ModelConfig(), widths={}, tasks=(), kernel="PYTORCH")
    given = {"all": torch.ones(2)}
    assert model.predict(given).logits["a"] is given["all"]
    assert model.predict(given).repeat is None


def test_reading_groups() -> None:
    lengths = torch.tensor([2, 1])
    groups: Groups = {
        "times": Ragged(torch.tensor([[5], [6], [7]]), lengths, 2),
        "dense": torch.ones(2, 3),
    }
    assert integer_sequence(groups, "times").values.tolist() == [5, 6, 7]
    with pytest.raises(UserError, match=r"group 'dense': found Tensor; expected a JAGGED_SEQUENCE"):
        ragged_group(groups, "dense")
    with pytest.raises(UserError, match=r"group 'none': found NoneType"):
        ragged_group(groups, "none")
    assert real_numbers(torch.ones(2, dtype=torch.int64)).dtype == torch.float32
    assert real_numbers(groups["dense"]) is groups["dense"]
