# SPDX-License-Identifier: Apache-2.0
"""What one gate computes, and the tier of it in plain PyTorch.

    s = SiLU(u) or u        n = Norm(O) * weight + bias, over all W columns or over each group
    y = Dropout(concat[s, O, s * n])   or   Dropout(s * n)

R rows, W columns, G groups (heads) of W / G. Backward computes s, n and the dropout mask again from
u, O, the statistics and the seed. Arithmetic is float32, or float64 for float64 inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tzgen.ops.dropout.mask import keep_mask, keep_scale


@dataclass(frozen=True)
class Gate:
    """The arguments of a gate that forward and backward share. `ratio` is 0 outside training."""

    concat: bool
    activate_u: bool
    groups: int
    eps: float
    ratio: float
    seed: int

    def parts(self) -> int:
        """Widths of W in y."""
        return 3 if self.concat else 1


@dataclass(frozen=True)
class Sums:
    """Gradients of the norm's weight and bias by column, float [W]; rows are added to them."""

    weight: Tensor
    bias: Tensor


def forward(
    attended: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor,
    gate: Gate,
    *,
    first_row: int,
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    """attended, u [R, W], weight, bias [W] -> out [R, W * parts], mean and rstd [R, G]."""
    width = attended.size(1)
    math = mean.dtype
    normed, new_mean, new_rstd = _norm(attended.to(math), gate)
    mean.copy_(new_mean)
    rstd.copy_(new_rstd)
    s = F.silu(u.to(math)) if gate.activate_u else u.to(math)
    torch.mul(normed.mul_(weight).add_(bias), s, out=normed)
    if gate.concat:
        out[:, :width] = s
        out[:, width : 2 * width] = attended
    out[:, -width:] = normed
    if gate.ratio > 0:
        _drop(out, gate, first_row)


def backward(
    grad: Tensor,
    attended: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gate: Gate,
    *,
    first_row: int,
    d_attended: Tensor,
    d_u: Tensor,
    sums: Sums,
    y: Tensor | None,
) -> None:
    """grad [R, W * parts] (overwritten) -> d_attended, d_u [R, W]; fills y where it is given."""
    width = attended.size(1)
    math = mean.dtype
    if gate.ratio > 0:
        _drop(grad, gate, first_row)
    parts = grad.to(math).split(width, dim=1)
    raw = u.to(math)
    by_group = (attended.size(0), gate.groups, -1)
    centred = attended.to(math).view(by_group) - mean[:, :, None]
    x_hat = (centred * rstd[:, :, None]).view(attended.shape)
    normed = x_hat * weight + bias
    s = F.silu(raw) if gate.activate_u else raw
    d_normed = parts[-1] * s
    d_s = parts[-1] * normed
    if gate.concat:
        d_s += parts[0]
    d_u.copy_(torch.ops.aten.silu_backward(d_s, raw) if gate.activate_u else d_s)
    sums.weight.add_((d_normed * x_hat).sum(0))
    sums.bias.add_(d_normed.sum(0))
    d_hat = (d_normed * weight).view(by_group)
    x_hat = x_hat.view(by_group)
    slope = (d_hat * x_hat).mean(2, keepdim=True)
    d_input = (d_hat - d_hat.mean(2, keepdim=True) - x_hat * slope) * rstd[:, :, None]
    d_input = d_input.view(attended.shape)
    d_attended.copy_(d_input + parts[1] if gate.concat else d_input)
    if y is not None:
        if gate.concat:
            y[:, :width] = s
            y[:, width : 2 * width] = attended
        y[:, -width:] = normed * s
        if gate.ratio > 0:
            _drop(y, gate, first_row)


def _norm(x: Tensor, gate: Gate) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised rows [R, W] without weight, their mean and rstd [R, G]."""
    by_group = x.view(x.size(0), gate.groups, -1)
    normed, mean, rstd = torch.native_layer_norm(by_group, by_group.shape[2:], None, None, gate.eps)
    return normed.view(x.shape), mean.squeeze(2), rstd.squeeze(2)


def _drop(y: Tensor, gate: Gate, first_row: int) -> None:
    keep = keep_mask(gate.seed, first_row, y.size(0), y.size(1), gate.ratio, y.device)
    y.mul_(keep).mul_(keep_scale(gate.ratio))
