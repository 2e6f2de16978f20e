# SPDX-License-Identifier: Apache-2.0
"""Dropout without a stored mask: kept elements are a hash of (seed, row, column), see `mask.py`.

One `torch.library` op (`tzgen::dropout`). torch's own draws its numbers on one CPU thread, which
took 8 % of a training step of DlrmHSTU (D 128, two layers).
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

from tzgen.ops import native
from tzgen.ops.dropout.mask import draw_seed, keep_mask, keep_scale

__all__ = ["draw_seed", "dropout", "keep_mask", "keep_scale"]


def dropout(x: Tensor, ratio: float, *, training: bool) -> Tensor:
    """x [..., D] with a share `ratio` of its elements zero and the rest scaled up; x itself when
    not training or when the ratio is 0. The seed comes from torch's default CPU generator."""
    if not 0.0 <= ratio < 1.0:
        raise ValueError(f"a dropout ratio is in [0, 1); got {ratio}")
    if not training or ratio == 0.0:
        return x
    return _dropout(x, draw_seed(), ratio)


@torch.library.custom_op("tzgen::dropout", mutates_args=())
def _dropout(x: Tensor, seed: Tensor, ratio: float) -> Tensor:
    rows = x.reshape(-1, x.size(-1)) if x.dim() else x.reshape(1, 1)
    if x.device.type == "cpu" and x.dtype == torch.float32 and native.available():
        out: Tensor = torch.ops.tzgen_native.dropout(rows.contiguous(), int(seed), ratio)
        return out.view(x.shape)
    if x.device.type == "cuda" and x.dtype != torch.float64 and _has_triton():
        from tzgen.ops.dropout import triton_dropout  # only where it is dispatched

        return triton_dropout.drop(rows, int(seed), ratio).view(x.shape)
    keep = keep_mask(int(seed), 0, rows.size(0), rows.size(1), ratio, x.device)
    return (rows * keep).mul_(keep_scale(ratio)).view(x.shape)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@_dropout.register_fake
def _(x: Tensor, seed: Tensor, ratio: float) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, ctx.ratio = inputs
    ctx.save_for_backward(seed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (seed,) = ctx.saved_tensors
    return _dropout(grad, seed, ctx.ratio), None, None


torch.library.register_autograd("tzgen::dropout", _backward, setup_context=_setup_context)
