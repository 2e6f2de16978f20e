# SPDX-License-Identifier: Apache-2.0
"""STU attention by the C++ ops of `ops/native`: the fast path of CPUs.

Any dtype and strides; arithmetic is float32, or float64 for float64 inputs. The time bias buckets
times by float32 logarithms as `bias.time_index` does; C++ gets the borders of the buckets, found
with that very function, so that the two never disagree on a pair.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from tzgen.ops.hstu_attention.call import Call

ONE = 0x3F800000  # the bits of float32 1.0, the least |dt|
LARGEST = 0x5F000000  # those of 2^63
CELL_BITS = 18  # float32 numbers that share all but so many bits are a cell: 32 an octave


def forward(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, call: Call) -> Tensor:
    """[L, H, attention_dim] x 2, [L, H, hidden_dim] -> [L, H, hidden_dim]."""
    out: Tensor = torch.ops.tzgen_native.hstu_attention_forward(
        q, k, v, *arguments(q, offsets, call)
    )
    return out


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, call: Call
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and of the two bias tables (empty where there is no table)."""
    d_q, d_k, d_v, d_position, d_time = torch.ops.tzgen_native.hstu_attention_backward(
        grad, q, k, v, *arguments(q, offsets, call)
    )
    return d_q, d_k, d_v, d_position, d_time


def mask_fields(call_mask: object) -> list[int]:
    """The fields of a MaskSpec as the C++ side takes them, in their order."""
    return [int(value) for value in vars(call_mask).values()]


def arguments(q: Tensor, offsets: Tensor, call: Call) -> tuple[object, ...]:
    """What follows q, k and v in a call of the C++ ops."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    steps = cells = None
    if call.time_bias is not None:
        steps, cells = time_steps(call.time_bias.size(1), call.time_bias_divisor)
    return (
        offsets.contiguous(),
        _contiguous(call.num_targets),
        _contiguous(call.timestamps),
        _contiguous(call.position_bias, dtype),
        _contiguous(call.time_bias, dtype),
        steps,
        cells,
        call.alpha,
        call.divisor,
        mask_fields(call.mask),
    )


def _contiguous(x: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
    return None if x is None else x.to(x.dtype if dtype is None else dtype).contiguous()


@functools.lru_cache(maxsize=64)
def time_steps(table_size: int, divisor: float) -> tuple[Tensor, Tensor]:
    """Where the buckets of `bias.time_index` begin.

    steps float32 [table_size + 1]: the least |dt| of each bucket, then infinity.
    cells int32: the bucket of the least number of each cell of float32 numbers from 1 on.
    """

    def bucket(bits: Tensor) -> Tensor:
        size = bits.to(torch.int32).view(torch.float32)
        return (size.log() / divisor).to(torch.int64).clamp(max=table_size - 1)

    low = torch.full((table_size,), ONE, dtype=torch.int64)
    high = torch.full((table_size,), LARGEST + 1, dtype=torch.int64)
    wanted = torch.arange(table_size)
    while bool((low < high).any()):  # bisect all borders at once over the bits of the numbers
        middle = (low + high) // 2
        reached = bucket(middle) >= wanted
        high = torch.where(reached, middle, high)
        low = torch.where(reached, low, torch.minimum(middle + 1, high))
    steps = low.to(torch.int32).view(torch.float32)
    steps = torch.cat([torch.where(low > LARGEST, torch.inf, steps), torch.tensor([torch.inf])])
    cells = torch.arange(ONE, LARGEST + (1 << CELL_BITS), 1 << CELL_BITS)
    return steps, bucket(cells).to(torch.int32)
