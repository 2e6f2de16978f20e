# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs
"""Dropout alone in Triton: one read, one write, the hash of `mask.py` in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzgen.ops.dropout.triton_keep import keep_arguments, keep_factors


def drop(x: Tensor, seed: int, ratio: float) -> Tensor:
    """x [R, C] -> the same shape and dtype."""
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, columns = x.shape
    if x.numel():
        block_rows, block = 16, 128
        grid = (triton.cdiv(rows, block_rows), triton.cdiv(columns, block))
        _drop[grid](
            x,
            out,
            rows,
            columns,
            *keep_arguments(seed, ratio),
            ROWS=block_rows,
            BLOCK=block,
            num_warps=4,
        )
    return out


@triton.jit(do_not_specialize=["low", "high", "limit"])
def _drop(x, out, rows, columns, low, high, limit, scale,
          ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    at = row[:, None] * columns + column[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    value = value * keep_factors(row, column, low, high, limit, scale)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)
