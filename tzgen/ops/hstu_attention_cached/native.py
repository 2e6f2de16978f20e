# SPDX-License-Identifier: Apache-2.0
"""Cached STU attention by the C++ op of `ops/native`: the fast path of CPUs.

float32 and float64; halves go to the pure-torch form, which computes them in float32. Keys and
values of the cache are read where they lie.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention.native import mask_fields, time_steps
from tzgen.ops.hstu_attention_cached import cpu
from tzgen.ops.hstu_attention_cached.cache import CachedKV


def forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, cache: CachedKV, call: Call
) -> Tensor:
    """q, k [Lq, H, attention_dim], v [Lq, H, hidden_dim] -> [Lq, H, hidden_dim]."""
    if q.dtype not in (torch.float32, torch.float64):
        return cpu.forward(q, k, v, offsets, cache, call)
    steps = cells = None
    if call.time_bias is not None:
        steps, cells = time_steps(call.time_bias.size(1), call.time_bias_divisor)
    reads_time = call.time_bias is not None or call.mask.timestamp_mask
    out: Tensor = torch.ops.tzgen_native.hstu_attention_cached(
        *(_heads(x) for x in (q, k, v)),
        offsets.contiguous(),
        _heads(cache.k),
        _heads(cache.v),
        cache.lengths.contiguous(),
        _contiguous(cache.table),
        _contiguous(cache.timestamps) if reads_time else None,
        _contiguous(call.num_targets),
        _contiguous(call.timestamps) if reads_time else None,
        _contiguous(call.position_bias, q.dtype),
        _contiguous(call.time_bias, q.dtype),
        steps,
        cells,
        call.alpha,
        call.divisor,
        mask_fields(call.mask),
    )
    return out


def _heads(x: Tensor) -> Tensor:
    """The numbers of one head side by side; a copy only where they are not."""
    return x if x.size(-1) <= 1 or x.stride(-1) == 1 else x.contiguous()


def _contiguous(x: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
    return None if x is None else x.to(x.dtype if dtype is None else dtype).contiguous()
