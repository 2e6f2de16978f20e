# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs
"""The hash of `mask.py` inside Triton kernels, bit for bit, and its arguments from the host."""

from __future__ import annotations

import triton
import triton.language as tl

from tzgen.ops.dropout.mask import keep_scale, signed, threshold


def keep_arguments(seed: int, ratio: float) -> tuple[int, int, int, float]:
    """low and high half of the seed and the threshold as int32, and the scale of what is kept."""
    return signed(seed), signed(seed >> 32), signed(threshold(ratio)), keep_scale(ratio)


@triton.jit
def _mix(word):
    word ^= word >> 16
    word *= tl.full((), 0x21F0AAAD, tl.uint32)
    word ^= word >> 15
    word *= tl.full((), 0xD35A2D97, tl.uint32)
    return word ^ (word >> 15)


@triton.jit
def keep_factors(row, column, low, high, limit, scale):
    """`scale` or 0 for rows [R] x columns [C]; low, high, limit, scale of `keep_arguments`."""
    key = _mix(row.to(tl.uint32) ^ low.to(tl.uint32, bitcast=True))
    key = _mix(key ^ high.to(tl.uint32, bitcast=True))
    place = column.to(tl.uint32) * tl.full((), 0x9E3779B9, tl.uint32)
    word = _mix(key[:, None] ^ place[None, :])
    return tl.where(word >= limit.to(tl.uint32, bitcast=True), scale, 0.0)
