# SPDX-License-Identifier: Apache-2.0
"""Activations by the name a config gives them: "nn.ReLU", "LeakyReLU(0.1)", "Dice", "" for none.

Names resolve from a fixed table, never by `eval`; `config.allowlists` accepts exactly these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn


class Dice(nn.Module):
    """Adaptive gate of Deep Interest Network: p x + (1 - p) a x, p = sigmoid(BN(x)), a learned.

    x [..., width]; statistics over all leading dimensions.
    """

    def __init__(self, width: int, epsilon: float = 1e-9) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=epsilon, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.norm(x.reshape(-1, x.size(-1)))).view_as(x)
        return x * (gate + (1 - gate) * self.alpha)


_PLAIN: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "CELU": nn.CELU,
        "ELU": nn.ELU,
        "GELU": nn.GELU,
        "Hardsigmoid": nn.Hardsigmoid,
        "Hardswish": nn.Hardswish,
        "Hardtanh": nn.Hardtanh,
        "Identity": nn.Identity,
        "LeakyReLU": nn.LeakyReLU,
        "LogSigmoid": nn.LogSigmoid,
        "Mish": nn.Mish,
        "PReLU": nn.PReLU,
        "ReLU": nn.ReLU,
        "ReLU6": nn.ReLU6,
        "SELU": nn.SELU,
        "SiLU": nn.SiLU,
        "Sigmoid": nn.Sigmoid,
        "Softplus": nn.Softplus,
        "Softsign": nn.Softsign,
        "Tanh": nn.Tanh,
    }
)
_PREFIXES = ("torch.nn.", "nn.", "tzrec.modules.activation.")


def create_activation(text: str, width: int) -> nn.Module | None:
    """The module that `text` names, for inputs [..., width]; None for "" (no activation)."""
    name, _, arguments = text.strip().replace("(", ",", 1).rstrip(")").partition(",")
    name = name.strip()
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    if not name:
        return None
    by_place: list[float] = []
    by_name: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in arguments.split(","))):
        key, _, value = part.rpartition("=")
        number = float(value)
        if key:
            by_name[key.strip()] = int(number) if key.strip() == "num_parameters" else number
        else:
            by_place.append(number)
    if name == "Dice":
        return Dice(width, *by_place, **by_name)
    if name not in _PLAIN:
        known = ", ".join(sorted([*_PLAIN, "Dice"]))
        raise ValueError(f"unknown activation {text!r}; known: {known}")
    if name == "PReLU" and by_place:
        by_place[0] = int(by_place[0])
    return _PLAIN[name](*by_place, **by_name)
