# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs
"""Layer norm in Triton: one pass forward, one pass backward and a sum of partial sums.

Rows go through in tiles of ROWS x BLOCK (all D columns, padded to a power of two). Backward runs a
bounded number of programs; each adds the gradients of weight and bias of its rows in a fixed order
and writes one row of partial sums, so that runs are equal bit by bit. Arithmetic is float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_WIDTH = 16384  # columns that one program may hold
PROGRAMS = 512  # of a backward: a few for every multiprocessor


def tiling(width: int, elements: int) -> dict[str, int]:
    """BLOCK, ROWS and num_warps for rows of `width`, tiles of about `elements`."""
    if not 0 < width <= MAX_WIDTH:
        raise ValueError(
            f"the Triton norms take rows of 1 to {MAX_WIDTH} columns; got {width}: "
            "use kernel PYTORCH"
        )
    block = triton.next_power_of_2(width)
    rows = max(1, elements // block)
    return {"BLOCK": block, "ROWS": rows, "num_warps": min(16, max(4, block * rows // 512))}


def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x [L, D] -> normed x in its dtype, mean and rstd float32 [L, 1]."""
    x = x if x.stride(1) == 1 else x.contiguous()
    rows, width = x.shape
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    mean, rstd = (torch.empty((rows, 1), device=x.device) for _ in range(2))
    if rows:
        tile = tiling(width, 2048)
        grid = (triton.cdiv(rows, tile["ROWS"]),)
        _forward[grid](x, weight, bias, out, mean, rstd, x.stride(0), rows, width, eps, **tile)
    return out, mean, rstd


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """grad [L, D] -> d_x in x's dtype, d_weight and d_bias float32 [D]."""
    grad, x = (t if t.stride(1) == 1 else t.contiguous() for t in (grad, x))
    rows, width = x.shape
    d_x = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    tile = tiling(width, 1024)
    programs = min(triton.cdiv(rows, tile["ROWS"]), PROGRAMS)
    partial = torch.empty((2, programs, width), device=x.device)
    if rows:
        _backward[(programs,)](
            grad,
            x,
            weight,
            mean,
            rstd,
            d_x,
            partial[0],
            partial[1],
            grad.stride(0),
            x.stride(0),
            rows,
            width,
            programs,
            **tile,
        )
    return d_x, partial[0].sum(0), partial[1].sum(0)


@triton.jit
def _forward(x, weight, bias, out, mean, rstd, x_stride, rows, width, eps,
             BLOCK: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row[:, None] < rows) & (column[None, :] < width)
    value = tl.load(x + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0)
    value = value.to(tl.float32)
    middle = tl.sum(value, 1) / width
    centred = tl.where(inside, value - middle[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / width + eps)
    w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
    normed = centred * scale[:, None] * w[None, :] + b[None, :]
    target = out + row[:, None] * width + column[None, :]
    tl.store(target, normed.to(out.dtype.element_ty), mask=inside)
    tl.store(mean + row, middle, mask=row < rows)
    tl.store(rstd + row, scale, mask=row < rows)


@triton.jit
def _backward(grad, x, weight, mean, rstd, d_x, d_weight, d_bias, grad_stride, x_stride, rows,
              width, programs, BLOCK: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    weight_sum = tl.zeros((BLOCK,), tl.float32)
    bias_sum = tl.zeros((BLOCK,), tl.float32)
    for tile in range(program, tl.cdiv(rows, ROWS), programs):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = (row[:, None] < rows) & (column[None, :] < width)
        g = tl.load(grad + row[:, None] * grad_stride + column[None, :], mask=inside, other=0.0)
        value = tl.load(x + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0)
        middle = tl.load(mean + row, mask=row < rows, other=0.0)
        scale = tl.load(rstd + row, mask=row < rows, other=0.0)
        g = g.to(tl.float32)
        hat = tl.where(inside, (value.to(tl.float32) - middle[:, None]) * scale[:, None], 0.0)
        weight_sum += tl.sum(g * hat, 0)
        bias_sum += tl.sum(g, 0)
        d_hat = g * w[None, :]
        plain = tl.sum(d_hat, 1) / width
        slope = tl.sum(d_hat * hat, 1) / width
        d = (d_hat - plain[:, None] - hat * slope[:, None]) * scale[:, None]
        target = d_x + row[:, None] * width + column[None, :]
        tl.store(target, d.to(d_x.dtype.element_ty), mask=inside)
    tl.store(d_weight + program * width + column, weight_sum, mask=column < width)
    tl.store(d_bias + program * width + column, bias_sum, mask=column < width)
