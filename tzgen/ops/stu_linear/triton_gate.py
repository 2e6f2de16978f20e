# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs
"""The gate of `gate.py` in Triton: one pass forward, one pass backward and a sum of partial sums.

A program owns one group (all W columns, or those of one head) of a tile of rows, so that the norm
is a sum over the tile's columns. Backward runs a bounded number of programs; each adds the
gradients of weight and bias in a fixed order into one row of partial sums: runs are equal bit by
bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzgen.ops.dropout.triton_keep import keep_arguments, keep_factors
from tzgen.ops.layer_norm.triton_layer_norm import PROGRAMS, tiling
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
    attended, u = _rows(attended), _rows(u)
    rows, width = attended.size(0), attended.size(1) // gate.groups
    if rows == 0:
        return
    tile = tiling(width, 2048)
    _forward[(triton.cdiv(rows, tile["ROWS"]), gate.groups)](
        attended,
        u,
        weight,
        bias,
        out,
        mean,
        rstd,
        attended.stride(0),
        u.stride(0),
        out.stride(0),
        rows,
        width,
        gate.groups,
        gate.eps,
        first_row,
        *keep_arguments(gate.seed, gate.ratio),
        **_switches(gate),
        **tile,
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
    attended, u = _rows(attended), _rows(u)
    rows, width = attended.size(0), attended.size(1) // gate.groups
    if rows == 0:
        return
    tile = tiling(width, 1024)
    programs = min(triton.cdiv(rows, tile["ROWS"]), max(PROGRAMS // gate.groups, 1))
    partial = torch.empty((2, programs, attended.size(1)), device=attended.device)
    _backward[(programs, gate.groups)](
        grad,
        attended,
        u,
        weight,
        bias,
        mean,
        rstd,
        d_attended,
        d_u,
        grad if y is None else y,
        partial[0],
        partial[1],
        grad.stride(0),
        attended.stride(0),
        u.stride(0),
        d_attended.stride(0),
        d_u.stride(0),
        grad.stride(0) if y is None else y.stride(0),
        rows,
        width,
        gate.groups,
        programs,
        first_row,
        *keep_arguments(gate.seed, gate.ratio),
        WRITES_Y=y is not None,
        **_switches(gate),
        **tile,
    )
    sums.weight.add_(partial[0].sum(0))
    sums.bias.add_(partial[1].sum(0))


def _switches(gate: Gate) -> dict[str, Any]:
    return {"CONCAT": gate.concat, "ACTIVATE": gate.activate_u, "DROPS": gate.ratio > 0}


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


VARYING = ["first_row", "low", "high", "limit"]  # numbers that must not make a new variant


@triton.jit
def _load(base, row, stride, column, inside):
    """float32 values of rows [R] x columns [C]; zero outside."""
    at = base + row[:, None] * stride + column[None, :]
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(base, row, stride, column, inside, value):
    at = base + row[:, None] * stride + column[None, :]
    tl.store(at, value.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _drop(value, row, column, first_row, low, high, limit, scale, DROPS: tl.constexpr):
    if DROPS:
        value = value * keep_factors(row + first_row, column, low, high, limit, scale)
    return value


@triton.jit(do_not_specialize=VARYING)
def _forward(attended, u, weight, bias, out, mean, rstd, o_stride, u_stride, y_stride, rows, width,
             groups, eps, first_row, low, high, limit, scale, CONCAT: tl.constexpr,
             ACTIVATE: tl.constexpr, DROPS: tl.constexpr, BLOCK: tl.constexpr,
             ROWS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1)
    within = tl.arange(0, BLOCK)
    column = group * width + within
    total = groups * width
    inside = (row[:, None] < rows) & (within[None, :] < width)
    o = _load(attended, row, o_stride, column, inside)
    s = _load(u, row, u_stride, column, inside)
    if ACTIVATE:
        s = s / (1.0 + tl.exp(-s))
    middle = tl.sum(o, 1) / width
    centred = tl.where(inside, o - middle[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 1) / width + eps)
    w = tl.load(weight + column, mask=within < width, other=0.0)
    b = tl.load(bias + column, mask=within < width, other=0.0)
    last = (centred * inverse[:, None] * w[None, :] + b[None, :]) * s
    start = 0
    if CONCAT:
        y = _drop(s, row, column, first_row, low, high, limit, scale, DROPS)
        _store(out, row, y_stride, column, inside, y)
        y = _drop(o, row, column + total, first_row, low, high, limit, scale, DROPS)
        _store(out, row, y_stride, column + total, inside, y)
        start = 2 * total
    y = _drop(last, row, column + start, first_row, low, high, limit, scale, DROPS)
    _store(out, row, y_stride, column + start, inside, y)
    tl.store(mean + row * groups + group, middle, mask=row < rows)
    tl.store(rstd + row * groups + group, inverse, mask=row < rows)


@triton.jit(do_not_specialize=VARYING)
def _backward(grad, attended, u, weight, bias, mean, rstd, d_attended, d_u, y, d_weight, d_bias,
              g_stride, o_stride, u_stride, do_stride, du_stride, y_stride, rows, width, groups,
              programs, first_row, low, high, limit, scale, WRITES_Y: tl.constexpr,
              CONCAT: tl.constexpr, ACTIVATE: tl.constexpr, DROPS: tl.constexpr,
              BLOCK: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    group = tl.program_id(1)
    within = tl.arange(0, BLOCK)
    column = group * width + within
    total = groups * width
    start = 2 * total if CONCAT else 0
    w = tl.load(weight + column, mask=within < width, other=0.0)
    b = tl.load(bias + column, mask=within < width, other=0.0)
    weight_sum = tl.zeros((BLOCK,), tl.float32)
    bias_sum = tl.zeros((BLOCK,), tl.float32)
    for tile in range(program, tl.cdiv(rows, ROWS), programs):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = (row[:, None] < rows) & (within[None, :] < width)
        o = _load(attended, row, o_stride, column, inside)
        raw = _load(u, row, u_stride, column, inside)
        middle = tl.load(mean + row * groups + group, mask=row < rows, other=0.0)
        inverse = tl.load(rstd + row * groups + group, mask=row < rows, other=0.0)
        hat = tl.where(inside, (o - middle[:, None]) * inverse[:, None], 0.0)
        normed = hat * w[None, :] + b[None, :]
        s = raw
        slope_u = tl.full((ROWS, BLOCK), 1.0, tl.float32)
        if ACTIVATE:
            sigmoid = 1.0 / (1.0 + tl.exp(-raw))
            s = raw * sigmoid
            slope_u = sigmoid + s * (1.0 - sigmoid)
        d_last = _load(grad, row, g_stride, column + start, inside)
        d_last = _drop(d_last, row, column + start, first_row, low, high, limit, scale, DROPS)
        d_s = d_last * normed
        if CONCAT:
            d = _load(grad, row, g_stride, column, inside)
            d_s += _drop(d, row, column, first_row, low, high, limit, scale, DROPS)
        _store(d_u, row, du_stride, column, inside, d_s * slope_u)
        d_normed = d_last * s
        weight_sum += tl.sum(d_normed * hat, 0)
        bias_sum += tl.sum(d_normed, 0)
        d_hat = d_normed * w[None, :]
        plain = tl.sum(d_hat, 1) / width
        along = tl.sum(d_hat * hat, 1) / width
        d_o = (d_hat - plain[:, None] - hat * along[:, None]) * inverse[:, None]
        if CONCAT:
            d = _load(grad, row, g_stride, column + total, inside)
            d_o += _drop(d, row, column + total, first_row, low, high, limit, scale, DROPS)
        _store(d_attended, row, do_stride, column, inside, d_o)
        if WRITES_Y:
            if CONCAT:
                value = _drop(s, row, column, first_row, low, high, limit, scale, DROPS)
                _store(y, row, y_stride, column, inside, value)
                value = _drop(o, row, column + total, first_row, low, high, limit, scale, DROPS)
                _store(y, row, y_stride, column + total, inside, value)
            value = _drop(
                s * normed, row, column + start, first_row, low, high, limit, scale, DROPS
            )
            _store(y, row, y_stride, column + start, inside, value)
    tl.store(d_weight + program * total + column, weight_sum, mask=within < width)
    tl.store(d_bias + program * total + column, bias_sum, mask=within < width)
