# SPDX-License-Identifier: Apache-2.0
"""FusionMTLTower: the split of one Linear, and one path a task behind experts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tzgen.modules.mlp import MLPOptions
from tzgen.modules.towers import FusionMTLTower

OUTPUTS = {"click": 1, "kind": 3, "like": 1}
TRUNK = MLPOptions((5,), (), "nn.ReLU", False, True, False)


def test_splits_one_linear_in_order() -> None:
    tower = FusionMTLTower(4, mlp=TRUNK, outputs=OUTPUTS)
    user, item = torch.randn(7, 4), torch.randn(7, 4)
    trunk, linear = tower.heads[0]
    flat = linear(trunk(user * item))
    got = tower(user, item)
    assert list(got) == list(OUTPUTS)
    assert torch.equal(got["click"], flat[:, 0])
    assert torch.equal(got["kind"], flat[:, 1:4])
    assert torch.equal(got["like"], flat[:, 4])


def test_without_mlp() -> None:
    tower = FusionMTLTower(4, mlp=None, outputs={"click": 1})
    user, item = torch.randn(7, 4), torch.randn(7, 4)
    want = (user * item) @ tower.heads[0][0].weight.T
    torch.testing.assert_close(tower(user, item)["click"], want[:, 0])  # biases start at zero


class TwoExperts(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [x[:, :2], x[:, 2:] * 2]


def test_experts_give_each_task_its_own_path() -> None:
    outputs = {"click": 1, "kind": 3}
    tower = FusionMTLTower(4, mlp=TRUNK, outputs=outputs, experts=TwoExperts(), experts_dim=2)
    user, item = torch.randn(7, 4), torch.randn(7, 4)
    got = tower(user, item)
    fused = user * item
    torch.testing.assert_close(got["click"], tower.heads[0](fused[:, :2])[:, 0])
    torch.testing.assert_close(got["kind"], tower.heads[1](fused[:, 2:] * 2))


def test_one_candidate_keeps_its_dimension() -> None:
    tower = FusionMTLTower(4, mlp=None, outputs=OUTPUTS)
    got = tower(torch.randn(1, 4), torch.randn(1, 4))
    assert {name: tuple(x.shape) for name, x in got.items()} == {
        "click": (1,),
        "kind": (1, 3),
        "like": (1,),
    }


def test_no_tasks() -> None:
    with pytest.raises(ValueError, match="no task_configs"):
        FusionMTLTower(4, mlp=None, outputs={})
