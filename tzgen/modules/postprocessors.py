# SPDX-License-Identifier: Apache-2.0
"""What happens to the states of the last layer: length 1, layer norm, or periodic time first.

N states of width D. Source: generative-recommenders and TorchEasyRec, postprocessors (there with
3.14 for pi).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import Any

import torch
from torch import Tensor, nn

from tzgen.modules.mlp import xavier_init


@dataclass(frozen=True)
class GRTimestampLayerNormPostprocessorOptions:
    """The proto GRTimestampLayerNormPostprocessor."""

    time_duration_period_units: tuple[int, ...]
    time_duration_units_per_period: tuple[int, ...]


@dataclass(frozen=True)
class GROutputPostprocessorOptions:
    """The proto GROutputPostprocessor; l2norm and layernorm have no options."""

    output_postprocessor: tuple[str, GRTimestampLayerNormPostprocessorOptions | Any] | None


class OutputPostprocessor(nn.Module):
    """Base: states [N, D], timestamps int64 [N] -> [N, D]."""

    def forward(self, x: Tensor, timestamps: Tensor) -> Tensor:
        raise NotImplementedError


class L2NormPostprocessor(OutputPostprocessor):
    def forward(self, x: Tensor, timestamps: Tensor) -> Tensor:
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-6)


class LayerNormPostprocessor(OutputPostprocessor):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, timestamps: Tensor) -> Tensor:
        out: Tensor = self.norm(x)
        return out


class TimestampLayerNormPostprocessor(OutputPostprocessor):
    """LN(Linear([x, cos p_1, sin p_1, ...])), p = 2 pi (floor(t / unit) mod period) / period."""

    def __init__(self, options: GRTimestampLayerNormPostprocessorOptions, dim: int) -> None:
        super().__init__()
        units, periods = (
            options.time_duration_period_units,
            options.time_duration_units_per_period,
        )
        if len(units) != len(periods) or not units:
            raise ValueError(f"{len(units)} time_duration_period_units for {len(periods)} periods")
        self.register_buffer("units", torch.tensor(units, dtype=torch.int64), persistent=False)
        self.register_buffer("periods", torch.tensor(periods, dtype=torch.int64), persistent=False)
        self.combine = nn.Linear(dim + 2 * len(units), dim).apply(xavier_init)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, timestamps: Tensor) -> Tensor:
        units, periods = self.get_buffer("units"), self.get_buffer("periods")
        elapsed = (timestamps.unsqueeze(-1) // units) % periods  # int64: exact at any epoch
        phase = elapsed.to(torch.promote_types(x.dtype, torch.float32)) / periods * (2 * pi)
        waves = torch.stack([phase.cos(), phase.sin()], dim=-1).flatten(-2)
        out: Tensor = self.norm(self.combine(torch.cat([x, waves.to(x.dtype)], dim=-1)))
        return out


def create_output_postprocessor(
    options: GROutputPostprocessorOptions, dim: int
) -> OutputPostprocessor:
    inner: Any
    name, inner = options.output_postprocessor or ("nothing", None)
    if name == "l2norm_postprocessor":
        return L2NormPostprocessor()
    if name == "layernorm_postprocessor":
        return LayerNormPostprocessor(dim)
    if name == "timestamp_layernorm_postprocessor":
        return TimestampLayerNormPostprocessor(inner, dim)
    raise ValueError(
        f"output_postprocessor chooses {name}; known: l2norm_, layernorm_, "
        "timestamp_layernorm_postprocessor"
    )
