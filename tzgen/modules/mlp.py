# SPDX-License-Identifier: Apache-2.0
"""Fully connected layers: Linear, norm, activation, dropout, once per entry of `hidden_units`.

The last layer is like the others: it is activated too (TorchEasyRec's MLP).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from tzgen.modules.activation import create_activation


@dataclass(frozen=True)
class MLPOptions:
    """The proto MLP."""

    hidden_units: tuple[int, ...]
    dropout_ratio: tuple[float, ...]
    activation: str
    use_bn: bool
    bias: bool
    use_ln: bool


class MLP(nn.Module):
    """[..., in_features] -> [..., output_dim]; `output_dim` is the last of `hidden_units`.

    dropout_ratio: none, one for all layers, or one a layer. Batch norm makes the bias superfluous,
    so Linear has none then.
    """

    def __init__(
        self,
        in_features: int,
        *,
        hidden_units: Sequence[int],
        dropout_ratio: Sequence[float] = (),
        activation: str = "nn.ReLU",
        use_bn: bool = False,
        bias: bool = True,
        use_ln: bool = False,
    ) -> None:
        super().__init__()
        if not hidden_units:
            raise ValueError("hidden_units is empty: give the width of each layer")
        if use_bn and use_ln:
            raise ValueError("use_bn and use_ln are both set: a layer has one norm")
        ratios = list(dropout_ratio) or [0.0]
        ratios = ratios * len(hidden_units) if len(ratios) == 1 else ratios
        if len(ratios) != len(hidden_units):
            raise ValueError(f"{len(ratios)} dropout ratios for {len(hidden_units)} hidden_units")
        layers: list[nn.Module] = []
        for width, ratio in zip(hidden_units, ratios, strict=True):
            layers.append(nn.Linear(in_features, width, bias=bias and not use_bn))
            if use_bn:
                layers.append(_BatchNorm(width))
            if use_ln:
                layers.append(nn.LayerNorm(width))
            activated = create_activation(activation, width)
            if activated is not None:
                layers.append(activated)
            if ratio > 0:
                layers.append(nn.Dropout(ratio))
            in_features = width
        self.layers = nn.Sequential(*layers)
        self.output_dim = in_features

    @classmethod
    def from_options(cls, in_features: int, options: MLPOptions) -> MLP:
        return cls(
            in_features,
            hidden_units=options.hidden_units,
            dropout_ratio=options.dropout_ratio,
            activation=options.activation,
            use_bn=options.use_bn,
            bias=options.bias,
            use_ln=options.use_ln,
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class _BatchNorm(nn.BatchNorm1d):
    """Batch norm over every leading dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, x.size(-1))).view_as(x)


def xavier_init(module: nn.Module) -> None:
    """For `module.apply`: Xavier-uniform weights and zero biases in every Linear."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
