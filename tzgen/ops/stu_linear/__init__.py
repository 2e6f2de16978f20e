# SPDX-License-Identifier: Apache-2.0
"""The linear half of a STU layer: what is before its attention and what is after it.

    stu_input     u, v, q, k = SiLU on some of  LayerNorm(x) W^T + b
    stu_output    x + Dropout(y) W^T    y = concat[s, O, s * Norm(O)] or s * Norm(O), s = SiLU(u)

Two `torch.library` ops, `tzgen::stu_input` and `tzgen::stu_output`: torch.export keeps one node of
each with a dynamic number of tokens. GEMMs are the BLAS's (cuBLAS), everything between them is
fused: C++ or plain PyTorch on a CPU, Triton on CUDA. `recompute_*` choose what backward keeps.
L tokens, D features, W = heads * hidden_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from tzgen.ops.dropout.mask import draw_seed
from tzgen.ops.stu_linear.input_op import LETTERS, stu_input_op
from tzgen.ops.stu_linear.kernels import KERNELS, chosen_kernel
from tzgen.ops.stu_linear.output_op import stu_output_op
from tzgen.ops.stu_linear.recompute import recomputed
from tzgen.ops.stu_linear.reference import stu_input_reference, stu_output_reference

__all__ = [
    "KERNELS",
    "chosen_kernel",
    "recomputed",
    "stu_input",
    "stu_input_reference",
    "stu_output",
    "stu_output_reference",
]

FORMS = ("CONCAT_UOX", "UX")


def stu_input(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    widths: Sequence[int],
    activated: str = "u",
    eps: float = 1e-6,
    recompute_normed_x: bool = True,
    recompute_uvqk: bool = False,
    kernel: str = "AUTO",
    wanted: str = LETTERS,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [L, D], weight [P, D] (rows of u, v, q, k), bias [P] -> u, v, q, k [L, width] each.

    activated: which letters of "uvqk" pass through SiLU. For backward are kept: x; the normed x
    unless `recompute_normed_x`; the values before SiLU unless `recompute_uvqk` (that u, v, q, k
    themselves are given up as well takes `recomputed` around what reads them).
    Under autocast the GEMMs run in its dtype and the norm in x's. wanted: letters of what is read;
    the others are not computed and come back as [L, 0].
    """
    _check_input(x, norm_weight, weight, bias, widths, activated)
    if not set(wanted) <= set(LETTERS):
        raise ValueError(f"wanted is a subset of the letters {LETTERS!r}; got {wanted!r}")
    weight, bias = _autocast(x, weight, bias)
    keeps = torch.is_grad_enabled()
    with _without_autocast(x):
        out = stu_input_op(
            x,
            norm_weight,
            norm_bias,
            weight,
            bias,
            list(widths),
            activated,
            eps,
            keeps and not recompute_normed_x,
            keeps and not recompute_uvqk and activated != "",
            kernel,
            wanted,
        )
    return out[:4]


def stu_output(
    attended: Tensor,
    u: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    *,
    output_form: str = "CONCAT_UOX",
    activate_u: bool = False,
    group_norm_heads: int | None = None,
    eps: float = 1e-6,
    dropout: float = 0.0,
    training: bool = False,
    recompute_y: bool = True,
    kernel: str = "AUTO",
) -> Tensor:
    """attended, u [L, W], x [L, D], weight [D, 3 W] (or [D, W] with UX) -> [L, D].

    activate_u: u is not activated yet; SiLU is applied here, where it costs no pass of its own.
    group_norm_heads: None, norm weight and bias [W]; or the number of heads, each normed alone,
    with weight and bias [heads]. Dropout hashes a seed of torch's CPU generator (ops/dropout): no
    mask is kept. y [L, 3 W] is kept for backward only without `recompute_y`.
    """
    _check_output(attended, u, x, norm_weight, weight, output_form, group_norm_heads, dropout)
    (weight,) = _autocast(x, weight)
    seed = draw_seed() if training and dropout > 0 else None
    with _without_autocast(x):
        out = stu_output_op(
            *_as(weight.dtype, attended, u),
            x,
            norm_weight,
            norm_bias,
            weight,
            seed,
            output_form == "CONCAT_UOX",
            activate_u,
            group_norm_heads or 1,
            eps,
            dropout,
            torch.is_grad_enabled() and not recompute_y,
            kernel,
        )
    return out[0]


def _autocast(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    """Parameters of GEMMs in the dtype that F.linear would run in."""
    if not torch.is_autocast_enabled(x.device.type):
        return parameters
    dtype = torch.get_autocast_dtype(x.device.type)
    return _as(dtype, *parameters)


def _as(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors in `dtype`; a graph gets no node for those that are."""
    return tuple(x if x.dtype == dtype else x.to(dtype) for x in tensors)


def _without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """The ops choose their dtypes themselves. Nothing is entered, or traced, outside autocast."""
    device = x.device.type
    active = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if active else nullcontext()


def _check_input(
    x: Tensor,
    norm_weight: Tensor,
    weight: Tensor,
    bias: Tensor,
    widths: Sequence[int],
    activated: str,
) -> None:
    if x.dim() != 2 or weight.dim() != 2 or weight.size(1) != x.size(1):
        raise ValueError(
            f"stu_input wants x [L, D] and weight [P, D]; got {tuple(x.shape)}, "
            f"{tuple(weight.shape)}"
        )
    if len(widths) != 4 or sum(widths) != weight.size(0) or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"widths of u, v, q, k must add up to the {weight.size(0)} rows of weight and bias; "
            f"got {list(widths)} and a bias {tuple(bias.shape)}"
        )
    if norm_weight.shape != x.shape[1:]:
        raise ValueError(f"norm_weight must be [{x.size(1)}]; got {tuple(norm_weight.shape)}")
    if not set(activated) <= set(LETTERS) or len(set(activated)) != len(activated):
        raise ValueError(f"activated is a subset of the letters {LETTERS!r}; got {activated!r}")


def _check_output(
    attended: Tensor,
    u: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    weight: Tensor,
    output_form: str,
    group_norm_heads: int | None,
    dropout: float,
) -> None:
    if output_form not in FORMS:
        raise ValueError(f"output_form is one of {', '.join(FORMS)}; got {output_form!r}")
    if attended.dim() != 2 or attended.shape != u.shape or x.dim() != 2:
        raise ValueError(
            "stu_output wants attended and u [L, W], x [L, D]; got "
            f"{tuple(attended.shape)}, {tuple(u.shape)}, {tuple(x.shape)}"
        )
    width = attended.size(1)
    if weight.shape != (x.size(1), width * (3 if output_form == "CONCAT_UOX" else 1)):
        raise ValueError(
            f"{output_form} with D {x.size(1)} and W {width} has another weight than "
            f"{tuple(weight.shape)}"
        )
    if norm_weight.shape != (group_norm_heads or width,) or width % (group_norm_heads or 1):
        raise ValueError(
            f"norm_weight must be [{group_norm_heads or width}], which divides {width}; got "
            f"{tuple(norm_weight.shape)}"
        )
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"a dropout ratio is in [0, 1); got {dropout}")
