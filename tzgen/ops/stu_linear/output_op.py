# SPDX-License-Identifier: Apache-2.0
"""`torch.ops.tzgen.stu_output`: norm, gate, dropout, the output projection and the residual.

    out = x + y W^T,   y = Dropout(concat[s, O, s * Norm(O)])          see gate.py

On a CPU rows go through in chunks, so that y [L, 3 W] and its gradient exist for `CHUNK` rows only
and stay in the cache between the gate and the GEMM. L tokens, D features, W = heads * hidden_dim.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tzgen.ops.stu_linear.gate import Gate, Sums
from tzgen.ops.stu_linear.kernels import chosen_kernel

CHUNK = 1024  # rows; a multiple of what keeps the threads of a GEMM busy
GATES = {"CPU_TORCH": "gate", "CPU_NATIVE": "native_gate", "TRITON": "triton_gate"}


@torch.library.custom_op("tzgen::stu_output", mutates_args=())
def stu_output_op(
    attended: Tensor,
    u: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    seed: Tensor | None,
    concat: bool,
    activate_u: bool,
    groups: int,
    eps: float,
    ratio: float,
    keep_y: bool,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[L, D], and for backward: mean and rstd [L, groups], y (empty unless kept)."""
    gate, rows = _gate(seed, concat, activate_u, groups, eps, ratio), x.size(0)
    kernels = _kernels(kernel, attended)
    columns = _columns(norm_weight, attended), _columns(norm_bias, attended)
    width = attended.size(1) * gate.parts()
    out = torch.empty(x.shape, dtype=_out_dtype(x, weight), device=x.device)
    mean, rstd = (_statistics(attended, groups) for _ in range(2))
    y_all = _like(attended, rows if keep_y else 0, width)
    scratch = y_all if keep_y else _like(attended, _chunk(attended), width)
    for at in _chunks(attended):
        y = scratch[at] if keep_y else scratch[: at.stop - at.start]
        kernels.forward(
            attended[at],
            u[at],
            *columns,
            gate,
            first_row=at.start,
            out=y,
            mean=mean[at],
            rstd=rstd[at],
        )
        if x.dtype == weight.dtype:
            torch.addmm(x[at], y, weight.t(), out=out[at])
        else:
            torch.add(x[at], torch.mm(y, weight.t()), out=out[at])
    return out, mean, rstd, y_all


@stu_output_op.register_fake
def _(
    attended: Tensor,
    u: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    seed: Tensor | None,
    concat: bool,
    activate_u: bool,
    groups: int,
    eps: float,
    ratio: float,
    keep_y: bool,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = torch.empty(x.shape, dtype=_out_dtype(x, weight), device=x.device)
    mean, rstd = (_statistics(attended, groups) for _ in range(2))
    width = attended.size(1) * (3 if concat else 1)
    return out, mean, rstd, _like(attended, x.size(0) if keep_y else 0, width)


@torch.library.custom_op("tzgen::stu_output_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    attended: Tensor,
    u: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    seed: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    y_kept: Tensor,
    concat: bool,
    activate_u: bool,
    groups: int,
    eps: float,
    ratio: float,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of attended, u, norm_weight, norm_bias, weight."""
    gate = _gate(seed, concat, activate_u, groups, eps, ratio)
    kernels, keeps = _kernels(kernel, attended), y_kept.numel() > 0
    columns = _columns(norm_weight, attended), _columns(norm_bias, attended)
    width, rows = attended.size(1) * gate.parts(), _chunk(attended)
    d_attended, d_u = (_like(attended, *attended.shape) for _ in range(2))
    d_weight = torch.zeros_like(weight)
    sums = Sums(*(torch.zeros_like(columns[0]) for _ in range(2)))
    grad = grad.to(weight.dtype)
    d_y_all, y_all = _like(attended, rows, width), _like(attended, 0 if keeps else rows, width)
    for at in _chunks(attended):
        count = at.stop - at.start
        d_y, y = d_y_all[:count], y_all[:count]
        torch.mm(grad[at], weight, out=d_y)
        kernels.backward(
            d_y,
            attended[at],
            u[at],
            *columns,
            mean[at],
            rstd[at],
            gate,
            first_row=at.start,
            d_attended=d_attended[at],
            d_u=d_u[at],
            sums=sums,
            y=None if keeps else y,
        )
        d_weight.addmm_(grad[at].t(), y_kept[at] if keeps else y, beta=1.0 if at.start else 0.0)
    d_norm = (_by_parameter(total, norm_weight) for total in (sums.weight, sums.bias))
    return d_attended, d_u, *d_norm, d_weight  # type: ignore[return-value]


@_backward_op.register_fake
def _(
    grad: Tensor,
    attended: Tensor,
    u: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    return tuple(_like(one, *one.shape) for one in (attended, u, norm_weight, norm_bias, weight))


NUM_TENSORS = 7  # leading tensor arguments of the op


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    attended, u, x, norm_weight, norm_bias, weight, seed = inputs[:NUM_TENSORS]
    *ctx.constants, _, ctx.kernel = inputs[NUM_TENSORS:]
    ctx.x_dtype = x.dtype
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(attended, u, norm_weight, norm_bias, weight, seed, *output[1:])


def _backward(ctx: Any, grad: Tensor | None, *rest: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 14
    d_attended, d_u, *d_parameters = _backward_op(
        grad, *ctx.saved_tensors, *ctx.constants, ctx.kernel
    )
    return (d_attended, d_u, grad.to(ctx.x_dtype), *d_parameters, *[None] * 8)


torch.library.register_autograd("tzgen::stu_output", _backward, setup_context=_setup_context)


def _kernels(kernel: str, attended: Tensor) -> ModuleType:
    chosen = chosen_kernel(kernel, attended.device, attended.dtype)
    return importlib.import_module(f"tzgen.ops.stu_linear.{GATES[chosen]}")


def _gate(
    seed: Tensor | None, concat: bool, activate_u: bool, groups: int, eps: float, ratio: float
) -> Gate:
    number = 0 if seed is None else int(seed)
    return Gate(concat, activate_u, groups, eps, 0.0 if seed is None else ratio, number)


def _chunk(attended: Tensor) -> int:
    """Rows that are processed together."""
    rows = attended.size(0)
    return min(rows, CHUNK) if attended.device.type == "cpu" else rows


def _chunks(attended: Tensor) -> Iterator[slice]:
    rows = attended.size(0)
    step = _chunk(attended)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, max(step, 1)))


def _columns(parameter: Tensor, attended: Tensor) -> Tensor:
    """A weight a column or a head as one a column, [W] in the arithmetic's dtype."""
    repeats = attended.size(1) // parameter.size(0)
    return parameter.to(_math(attended)).repeat_interleave(repeats)


def _by_parameter(total: Tensor, parameter: Tensor) -> Tensor:
    """Sums by column [W] as sums by column or by head."""
    return total.view(parameter.size(0), -1).sum(1).to(parameter.dtype)


def _math(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


def _statistics(attended: Tensor, groups: int) -> Tensor:
    shape = (attended.size(0), groups)
    return torch.empty(shape, dtype=_math(attended), device=attended.device)


def _out_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, weight.dtype)


def _like(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device)
