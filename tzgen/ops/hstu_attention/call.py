# SPDX-License-Identifier: Apache-2.0
"""The arguments that forward and backward of every implementation share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tzgen.ops.hstu_attention.mask import MaskSpec


@dataclass(frozen=True)
class Call:
    """One attention, but for q, k, v and offsets; `hstu_attention` explains the fields."""

    mask: MaskSpec
    max_len: int
    alpha: float
    divisor: float
    time_bias_divisor: float
    num_targets: Tensor | None
    timestamps: Tensor | None
    position_bias: Tensor | None
    time_bias: Tensor | None
