# SPDX-License-Identifier: Apache-2.0
"""`stu_input` and `stu_output` in plain differentiable PyTorch: the specification."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tzgen.ops.dropout.mask import keep_mask, keep_scale


def stu_input_reference(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    widths: Sequence[int],
    activated: str,
    eps: float,
) -> tuple[Tensor, ...]:
    """x [L, D] -> u, v, q, k [L, width]."""
    normed = F.layer_norm(x, x.shape[1:], norm_weight, norm_bias, eps)
    parts = torch.split(F.linear(normed, weight, bias), list(widths), dim=1)
    pairs = zip("uvqk", parts, strict=True)
    return tuple(F.silu(part) if name in activated else part for name, part in pairs)


def stu_output_reference(
    attended: Tensor,
    u: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    *,
    output_form: str,
    activate_u: bool,
    group_norm_heads: int | None,
    eps: float,
    dropout: float = 0.0,
    seed: int | None = None,
) -> Tensor:
    """attended, u [L, W], x [L, D] -> [L, D]; no dropout without a seed."""
    s = F.silu(u) if activate_u else u
    if group_norm_heads is None:
        normed = F.layer_norm(attended, attended.shape[1:], norm_weight, norm_bias, eps)
    else:
        heads = attended.unflatten(1, (group_norm_heads, -1))
        heads = F.layer_norm(heads, heads.shape[2:], None, None, eps)
        normed = (heads * norm_weight[:, None] + norm_bias[:, None]).flatten(1)
    y = torch.cat([s, attended, s * normed], 1) if output_form == "CONCAT_UOX" else s * normed
    if seed is not None and dropout > 0:
        keep = keep_mask(seed, 0, y.size(0), y.size(1), dropout, y.device)
        y = y * keep * keep_scale(dropout)
    return x + F.linear(y, weight)
