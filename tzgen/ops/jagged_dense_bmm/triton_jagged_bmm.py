# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs
"""Ragged rows through a map each, in Triton: one launch, no question to the device, no padding.

Forward and d_jagged: a program owns a tile of tokens of one row and a tile of columns; which row a
tile belongs to is a search in the running sum of tiles. d_dense and d_bias: a program owns a tile
of one row's map and adds its tokens in order, so that runs are equal bit by bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, COLUMNS, DEPTH = 64, 64, 32  # of a tile


def forward(jagged: Tensor, offsets: Tensor, dense: Tensor, bias: Tensor | None) -> Tensor:
    """[L, K], int64 [B + 1], [B, K, M] of any strides, [B, M] or None -> [L, M]."""
    jagged = jagged.contiguous()
    total, depth = jagged.shape
    rows, columns = dense.size(0), dense.size(2)
    out = torch.empty((total, columns), dtype=jagged.dtype, device=jagged.device)
    if out.numel() == 0:
        return out
    row, first = _tiles(offsets, total)
    _forward[(row.numel(), triton.cdiv(columns, COLUMNS))](
        jagged,
        dense,
        dense if bias is None else bias.contiguous(),
        out,
        offsets,
        row,
        first,
        rows,
        depth,
        columns,
        dense.stride(0),
        dense.stride(1),
        dense.stride(2),
        HAS_BIAS=bias is not None,
        PRECISION=_precision(jagged),
        TOKENS=TOKENS,
        COLUMNS=COLUMNS,
        DEPTH=DEPTH,
        num_warps=4,
    )
    return out


def backward(
    grad: Tensor, jagged: Tensor, offsets: Tensor, dense: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """grad [L, M] -> d_jagged [L, K], d_dense [B, K, M], d_bias [B, M]."""
    grad, jagged = grad.contiguous(), jagged.contiguous()
    rows, depth, columns = dense.shape
    d_jagged = forward(grad, offsets, dense.transpose(1, 2), None)
    d_dense = torch.empty(dense.shape, dtype=dense.dtype, device=dense.device)
    d_bias = torch.empty((rows, columns), dtype=dense.dtype, device=dense.device)
    if d_dense.numel():
        _backward[(rows, triton.cdiv(depth, TOKENS), triton.cdiv(columns, COLUMNS))](
            grad,
            jagged,
            offsets,
            d_dense,
            d_bias,
            depth,
            columns,
            PRECISION=_precision(jagged),
            TOKENS=DEPTH,
            COLUMNS=COLUMNS,
            DEPTH=TOKENS,
            num_warps=4,
        )
    else:
        d_bias.zero_()
    return d_jagged, d_dense, d_bias


def _tiles(offsets: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Row and first token of every tile, int64; slots beyond the last have row B."""
    rows = offsets.numel() - 1
    tiles = (offsets.diff() + TOKENS - 1) // TOKENS
    ends = torch.cumsum(tiles, 0)
    slot = torch.arange(triton.cdiv(total, TOKENS) + rows, device=offsets.device)
    row = torch.searchsorted(ends, slot, right=True)
    known = row.clamp(max=rows - 1)
    return row, offsets[known] + (slot - (ends - tiles)[known]) * TOKENS


def _precision(x: Tensor) -> str:
    """How float32 is multiplied: as torch's own matrix products are."""
    return "tf32" if x.is_cuda and torch.backends.cuda.matmul.allow_tf32 else "ieee"


@triton.jit
def _forward(x, dense, bias, out, offsets, tile_row, tile_first, rows, depth, columns, b_stride,
             k_stride, m_stride, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
             TOKENS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    row = tl.load(tile_row + tl.program_id(0))
    if row < rows:
        token = tl.load(tile_first + tl.program_id(0)) + tl.arange(0, TOKENS)
        stop = tl.load(offsets + row + 1)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        within = tl.arange(0, DEPTH)
        total = tl.zeros((TOKENS, COLUMNS), tl.float32)
        for start in range(0, depth, DEPTH):
            k = start + within
            left = tl.load(
                x + token[:, None] * depth + k[None, :],
                mask=(token[:, None] < stop) & (k[None, :] < depth),
                other=0.0,
            )
            right = tl.load(
                dense + row * b_stride + k[:, None] * k_stride + column[None, :] * m_stride,
                mask=(k[:, None] < depth) & (column[None, :] < columns),
                other=0.0,
            )
            total += tl.dot(left, right, input_precision=PRECISION)
        if HAS_BIAS:
            b = tl.load(bias + row * columns + column, mask=column < columns, other=0.0)
            total += b[None, :].to(tl.float32)
        tl.store(
            out + token[:, None] * columns + column[None, :],
            total.to(out.dtype.element_ty),
            mask=(token[:, None] < stop) & (column[None, :] < columns),
        )


@triton.jit
def _backward(grad, x, offsets, d_dense, d_bias, depth, columns, PRECISION: tl.constexpr,
              TOKENS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    stop = tl.load(offsets + row + 1)
    total = tl.zeros((DEPTH, COLUMNS), tl.float32)
    bias_total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(tl.load(offsets + row), stop, TOKENS):
        token = start + tl.arange(0, TOKENS).to(tl.int64)
        left = tl.load(
            x + token[None, :] * depth + k[:, None],
            mask=(token[None, :] < stop) & (k[:, None] < depth),
            other=0.0,
        )
        right = tl.load(
            grad + token[:, None] * columns + column[None, :],
            mask=(token[:, None] < stop) & (column[None, :] < columns),
            other=0.0,
        )
        total += tl.dot(left, right, input_precision=PRECISION)
        bias_total += tl.sum(right.to(tl.float32), 0)
    tl.store(
        d_dense + (row * depth + k[:, None]) * columns + column[None, :],
        total.to(d_dense.dtype.element_ty),
        mask=(k[:, None] < depth) & (column[None, :] < columns),
    )
    if tl.program_id(1) == 0:
        tl.store(
            d_bias + row * columns + column,
            bias_total.to(d_bias.dtype.element_ty),
            mask=column < columns,
        )
