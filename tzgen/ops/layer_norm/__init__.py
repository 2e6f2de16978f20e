# SPDX-License-Identifier: Apache-2.0
"""Layer norm as a building block of fused ops: rows in, rows and their statistics out.

L rows of D. No autograd here: callers are ops with a backward of their own. On a CPU, torch's own
kernels are at the memory's speed; on CUDA the Triton kernels take halves with float32 weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["normalise", "normalise_backward"]


def normalise(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, triton: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """x [L, D], weight, bias [D] -> (x - mean) * rstd * weight + bias in x's dtype, mean, rstd."""
    if triton:
        from tzgen.ops.layer_norm import triton_layer_norm  # only where it is dispatched

        return triton_layer_norm.forward(x, weight, bias, eps)
    return torch.native_layer_norm(x, x.shape[1:], weight.to(x.dtype), bias.to(x.dtype), eps)


def normalise_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    *,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """grad [L, D] with what `normalise` took and gave -> d_x [L, D], d_weight [D], d_bias [D]."""
    if triton:
        from tzgen.ops.layer_norm import triton_layer_norm  # only where it is dispatched

        return triton_layer_norm.backward(grad, x, weight, mean, rstd)
    return torch.ops.aten.native_layer_norm_backward(
        grad,
        x,
        x.shape[1:],
        mean,
        rstd,
        weight.to(x.dtype),
        bias.to(x.dtype),
        [True, True, True],
    )
