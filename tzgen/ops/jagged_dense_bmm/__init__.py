# SPDX-License-Identifier: Apache-2.0
"""Every row of a ragged batch through its own linear map: y_l = x_l @ W[row(l)] + b[row(l)].

L tokens of B rows, K -> M features. One `torch.library` op (`tzgen::jagged_dense_bmm`): on a CPU a
loop over rows, on CUDA one Triton launch that asks the device nothing. Neither padded tokens nor a
weight a token is ever materialised.
"""

from __future__ import annotations

import functools
import importlib.util
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tzgen.ops.jagged_dense_bmm.reference import jagged_dense_bmm_broadcast_add_reference

__all__ = ["jagged_dense_bmm_broadcast_add", "jagged_dense_bmm_broadcast_add_reference"]


def jagged_dense_bmm_broadcast_add(
    jagged: Tensor, offsets: Tensor, dense: Tensor, bias: Tensor
) -> Tensor:
    """[L, K], int64 [B + 1], [B, K, M], [B, M] -> [L, M]; floating arguments of one dtype."""
    if jagged.dim() != 2 or dense.dim() != 3 or dense.size(1) != jagged.size(1):
        raise ValueError(
            "jagged_dense_bmm_broadcast_add wants [L, K] and [B, K, M]; got "
            f"{tuple(jagged.shape)} and {tuple(dense.shape)}"
        )
    return _forward(jagged, offsets, dense, bias)


def _on_triton(x: Tensor) -> bool:
    return x.device.type == "cuda" and x.dtype != torch.float64 and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@torch.library.custom_op("tzgen::jagged_dense_bmm", mutates_args=())
def _forward(jagged: Tensor, offsets: Tensor, dense: Tensor, bias: Tensor) -> Tensor:
    if _on_triton(jagged):
        from tzgen.ops.jagged_dense_bmm import triton_jagged_bmm  # only where it is dispatched

        return triton_jagged_bmm.forward(jagged, offsets, dense, bias)
    out = torch.empty(jagged.size(0), dense.size(2), dtype=jagged.dtype, device=jagged.device)
    bounds = offsets.tolist()
    for row, (start, stop) in enumerate(pairwise(bounds)):
        if stop > start:
            torch.addmm(bias[row], jagged[start:stop], dense[row], out=out[start:stop])
    return out


@_forward.register_fake
def _(jagged: Tensor, offsets: Tensor, dense: Tensor, bias: Tensor) -> Tensor:
    return torch.empty(jagged.size(0), dense.size(2), dtype=jagged.dtype, device=jagged.device)


@torch.library.custom_op("tzgen::jagged_dense_bmm_backward", mutates_args=())
def _backward_op(
    grad: Tensor, jagged: Tensor, offsets: Tensor, dense: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if _on_triton(jagged):
        from tzgen.ops.jagged_dense_bmm import triton_jagged_bmm  # only where it is dispatched

        return triton_jagged_bmm.backward(grad, jagged, offsets, dense)
    d_jagged = torch.empty(jagged.shape, dtype=jagged.dtype, device=jagged.device)
    d_dense = torch.zeros(dense.shape, dtype=dense.dtype, device=dense.device)
    d_bias = torch.zeros(dense.size(0), dense.size(2), dtype=dense.dtype, device=dense.device)
    bounds = offsets.tolist()
    for row, (start, stop) in enumerate(pairwise(bounds)):
        if stop > start:
            rows = slice(start, stop)
            torch.mm(grad[rows], dense[row].t(), out=d_jagged[rows])
            torch.mm(jagged[rows].t(), grad[rows], out=d_dense[row])
            torch.sum(grad[rows], 0, out=d_bias[row])
    return d_jagged, d_dense, d_bias


@_backward_op.register_fake
def _(
    grad: Tensor, jagged: Tensor, offsets: Tensor, dense: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    def fresh(*shape: Any) -> Tensor:
        return torch.empty(shape, dtype=dense.dtype, device=dense.device)

    return fresh(*jagged.shape), fresh(*dense.shape), fresh(dense.size(0), dense.size(2))


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    jagged, offsets, dense, _ = inputs
    ctx.save_for_backward(jagged, offsets, dense)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    jagged, offsets, dense = ctx.saved_tensors
    d_jagged, d_dense, d_bias = _backward_op(grad, jagged, offsets, dense)
    return d_jagged, None, d_dense, d_bias


torch.library.register_autograd("tzgen::jagged_dense_bmm", _backward, setup_context=_setup_context)
