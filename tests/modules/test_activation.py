# SPDX-License-Identifier: Apache-2.0
"""Activations by name: exactly those that a config may use, with their arguments; Dice by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tzgen.config.allowlists import ACTIVATIONS
from tzgen.modules.activation import Dice, create_activation


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("spelling", ["{}", "nn.{}", "torch.nn.{}", " nn.{}() "])
def test_every_name_that_a_config_may_use(name: str, spelling: str) -> None:
    made = create_activation(spelling.format(name), 4)
    assert type(made).__name__ == name
    assert made(torch.randn(3, 4)).shape == (3, 4)


def test_no_activation() -> None:
    assert create_activation("", 4) is None


@pytest.mark.parametrize(
    ("text", "attribute", "value"),
    [
        ("nn.LeakyReLU(0.2)", "negative_slope", 0.2),
        ("nn.LeakyReLU,negative_slope=0.3", "negative_slope", 0.3),
        ("ELU(alpha=0.5)", "alpha", 0.5),
        ("nn.PReLU(4, 0.1)", "num_parameters", 4),
    ],
)
def test_arguments(text: str, attribute: str, value: float) -> None:
    assert getattr(create_activation(text, 4), attribute) == value


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match=r"unknown activation 'nn.Linear'; known: CELU, Dice"):
        create_activation("nn.Linear", 4)


def test_dice_is_its_formula() -> None:
    dice = Dice(3)
    nn.init.normal_(dice.alpha)
    x = torch.randn(2, 5, 3)
    flat = x.view(10, 3)
    normed = (flat - flat.mean(0)) / (flat.var(0, unbiased=False) + 1e-9).sqrt()
    gate = torch.sigmoid(normed)
    want = gate * flat + (1 - gate) * dice.alpha * flat
    torch.testing.assert_close(dice(x).view(10, 3), want)
