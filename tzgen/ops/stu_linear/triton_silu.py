# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs
"""Bias and SiLU behind a GEMM in Triton: one read and one write (two where raw is kept)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


def bias_silu(raw: Tensor, bias: Tensor, out: Tensor) -> None:
    """out = SiLU(raw + bias), and raw + bias in raw where it has memory of its own; all [L, W]."""
    rows, width = raw.shape
    if raw.numel() == 0:
        return
    block_rows, block = 16, 128
    grid = (triton.cdiv(rows, block_rows), triton.cdiv(width, block))
    keeps = raw.data_ptr() != out.data_ptr()
    _bias_silu[grid](
        raw,
        bias,
        out,
        raw.stride(0),
        out.stride(0),
        rows,
        width,
        KEEPS=keeps,
        ROWS=block_rows,
        BLOCK=block,
        num_warps=4,
    )


@triton.jit
def _bias_silu(raw, bias, out, raw_stride, out_stride, rows, width,
               KEEPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (row[:, None] < rows) & (column[None, :] < width)
    source = raw + row[:, None] * raw_stride + column[None, :]
    b = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
    value = tl.load(source, mask=inside, other=0.0).to(tl.float32) + b[None, :]
    if KEEPS:
        tl.store(source, value.to(raw.dtype.element_ty), mask=inside)
    activated = value / (1.0 + tl.exp(-value))
    target = out + row[:, None] * out_stride + column[None, :]
    tl.store(target, activated.to(out.dtype.element_ty), mask=inside)
