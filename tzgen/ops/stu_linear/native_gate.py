# SPDX-License-Identifier: Apache-2.0
"""The gate of `gate.py` by the native library (stu_gate.cpp): float32, one pass over a row."""

from __future__ import annotations

import torch
from torch import Tensor

from tzgen.ops.stu_linear.gate import Gate, Sums


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
    """As gate.forward."""
    torch.ops.tzgen_native.stu_gate(
        _rows(attended), _rows(u), weight, bias, out, mean, rstd, *_constants(gate, first_row)
    )


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
    """As gate.backward; `grad` is left as it is."""
    torch.ops.tzgen_native.stu_gate_backward(
        grad,
        _rows(attended),
        _rows(u),
        weight,
        bias,
        mean,
        rstd,
        d_attended,
        d_u,
        sums.weight,
        sums.bias,
        y,
        *_constants(gate, first_row),
    )


def _rows(x: Tensor) -> Tensor:
    """x [R, W] with adjacent columns; rows may have any distance."""
    return x if x.stride(1) == 1 else x.contiguous()


def _constants(gate: Gate, first_row: int) -> tuple[object, ...]:
    rest = (gate.groups, gate.eps, gate.ratio, gate.seed, first_row)
    return (gate.concat, gate.activate_u, *rest)
