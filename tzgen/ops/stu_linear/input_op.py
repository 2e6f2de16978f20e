# SPDX-License-Identifier: Apache-2.0
"""`torch.ops.tzgen.stu_input`: layer norm, the uvqk projection, its bias and SiLU.

Each of u, v, q, k is written by a GEMM of its own into memory of its own: four GEMMs cost what one
wide one does, the attention reads rows without gaps, and backward never joins four gradients into
one. SiLU runs on the output in place; the raw values of activated parts are kept or computed again.
L tokens, D features, P = sum of the widths of u, v, q, k.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tzgen.ops.layer_norm import normalise, normalise_backward
from tzgen.ops.stu_linear.kernels import chosen_kernel

LETTERS = "uvqk"


@torch.library.custom_op("tzgen::stu_input", mutates_args=())
def stu_input_op(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    widths: list[int],
    activated: str,
    eps: float,
    keep_normed: bool,
    keep_raw: bool,
    kernel: str,
    wanted: str = LETTERS,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """u, v, q, k, and for backward: the normed x, its mean and rstd, the raw activated parts.

    What is not kept is an empty tensor; what is not `wanted` of u, v, q, k has no columns.
    """
    activated = _both(activated, wanted)
    triton = chosen_kernel(kernel, x.device, weight.dtype) == "TRITON"
    normed, mean, rstd = normalise(x, norm_weight, norm_bias, eps, triton=triton)
    normed = normed.to(weight.dtype)
    rows = x.size(0)
    raw = _empty(weight, rows, _raw_width(widths, activated)) if keep_raw else _empty(weight, 0)
    outs = [_empty(weight, rows, width) for width in _wanted_widths(widths, wanted)]
    for letter, part, raw_part in _parts(widths, activated):
        if letter not in wanted:
            continue
        out = outs[LETTERS.index(letter)]
        project = torch.addmm if raw_part is None or not triton else torch.mm
        target = raw[:, raw_part] if keep_raw and raw_part is not None else out
        if project is torch.addmm:
            torch.addmm(bias[part], normed, weight[part].t(), out=target)
        else:
            torch.mm(normed, weight[part].t(), out=target)
        if raw_part is not None:
            _silu(target, bias[part], out, triton)
    if not keep_normed:
        normed = _empty(weight, 0)
        mean, rstd = (torch.empty(0, dtype=mean.dtype, device=x.device) for _ in range(2))
    return (*outs, normed, mean, rstd, raw)  # type: ignore[return-value]


@stu_input_op.register_fake
def _(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    widths: list[int],
    activated: str,
    eps: float,
    keep_normed: bool,
    keep_raw: bool,
    kernel: str,
    wanted: str = LETTERS,
) -> tuple[Tensor, ...]:
    activated, rows = _both(activated, wanted), x.size(0)
    outs = [_empty(weight, rows, width) for width in _wanted_widths(widths, wanted)]
    raw = _empty(weight, rows, _raw_width(widths, activated)) if keep_raw else _empty(weight, 0)
    normed = _empty(weight, *x.shape) if keep_normed else _empty(weight, 0)
    statistics = torch.promote_types(x.dtype, torch.float32)
    mean, rstd = (
        torch.empty((rows, 1) if keep_normed else 0, dtype=statistics, device=x.device)
        for _ in range(2)
    )
    return (*outs, normed, mean, rstd, raw)


@torch.library.custom_op("tzgen::stu_input_backward", mutates_args=())
def _backward_op(
    d_u: Tensor | None,
    d_v: Tensor | None,
    d_q: Tensor | None,
    d_k: Tensor | None,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    normed: Tensor,
    mean: Tensor,
    rstd: Tensor,
    raw: Tensor,
    widths: list[int],
    activated: str,
    eps: float,
    kernel: str,
    wanted: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, norm_weight, norm_bias, weight, bias."""
    activated = _both(activated, wanted)
    triton = chosen_kernel(kernel, x.device, weight.dtype) == "TRITON"
    if normed.numel() == 0:
        normed, mean, rstd = normalise(x, norm_weight, norm_bias, eps, triton=triton)
        normed = normed.to(weight.dtype)
    d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    d_normed: Tensor | None = None
    for letter, part, raw_part in _parts(widths, activated):
        grad = dict(zip(LETTERS, (d_u, d_v, d_q, d_k), strict=True))[letter]
        if grad is None or letter not in wanted:
            continue
        grad = grad.to(weight.dtype)
        if raw_part is not None:
            if raw.numel():
                value = raw[:, raw_part]
            else:
                value = torch.addmm(bias[part], normed, weight[part].t())
            grad = torch.ops.aten.silu_backward(grad, value)
        torch.mm(grad.t(), normed, out=d_weight[part])
        torch.sum(grad, 0, out=d_bias[part])
        if d_normed is None:
            d_normed = torch.mm(grad, weight[part])
        else:
            d_normed.addmm_(grad, weight[part])
    if d_normed is None:
        d_normed = torch.zeros_like(normed)
    grads = normalise_backward(
        d_normed.to(x.dtype), x, norm_weight, norm_bias, mean, rstd, triton=triton
    )
    d_norm = (grads[1].to(norm_weight.dtype), grads[2].to(norm_bias.dtype))
    return grads[0], *d_norm, d_weight, d_bias


@_backward_op.register_fake
def _(
    d_u: Tensor | None,
    d_v: Tensor | None,
    d_q: Tensor | None,
    d_k: Tensor | None,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    return tuple(_empty(like, *like.shape) for like in (x, norm_weight, norm_bias, weight, bias))


NUM_TENSORS = 5  # leading tensor arguments of the op


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.widths, ctx.activated, ctx.eps, _, _, ctx.kernel, ctx.wanted = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[4:])
    ctx.mark_non_differentiable(*output[4:])


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    found = _backward_op(
        *grads[:4], *ctx.saved_tensors, ctx.widths, ctx.activated, ctx.eps, ctx.kernel, ctx.wanted
    )
    return (*found, *[None] * 7)


torch.library.register_autograd("tzgen::stu_input", _backward, setup_context=_setup_context)


def _parts(widths: list[int], activated: str) -> Iterator[tuple[str, slice, slice | None]]:
    """(letter, its rows of the weight, its columns of the raw tensor or None) of u, v, q, k."""
    start = raw_start = 0
    for letter, width in zip(LETTERS, widths, strict=True):
        raw = slice(raw_start, raw_start + width) if letter in activated else None
        yield letter, slice(start, start + width), raw
        start += width
        raw_start += width if raw is not None else 0


def _both(letters: str, wanted: str) -> str:
    return "".join(letter for letter in letters if letter in wanted)


def _wanted_widths(widths: list[int], wanted: str) -> list[int]:
    return [w if letter in wanted else 0 for letter, w in zip(LETTERS, widths, strict=True)]


def _raw_width(widths: list[int], activated: str) -> int:
    return sum(w for letter, w in zip(LETTERS, widths, strict=True) if letter in activated)


def _silu(raw: Tensor, bias: Tensor, out: Tensor, triton: bool) -> None:
    """SiLU of raw [L, W] into out, which may be raw itself. Triton also adds the bias, in raw."""
    if triton:
        from tzgen.ops.stu_linear import triton_silu  # only where it is dispatched

        triton_silu.bias_silu(raw, bias, out)
    elif raw.data_ptr() == out.data_ptr():
        F.silu(raw, inplace=True)
    else:
        torch.ops.aten.silu.out(raw, out=out)


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device)
