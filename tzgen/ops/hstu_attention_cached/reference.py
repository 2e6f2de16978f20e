# SPDX-License-Identifier: Apache-2.0
"""Cached STU attention by its definition: join cache and new tokens, attend, keep the new rows.

One row at a time through the reference of `hstu_attention`. Slow on purpose; tests compare with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tzgen.ops.hstu_attention.mask import MaskSpec
from tzgen.ops.hstu_attention.reference import hstu_attention_reference
from tzgen.ops.hstu_attention_cached.cache import CachedKV


def hstu_attention_cached_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    cache: CachedKV,
    *,
    alpha: float,
    divisor: float,
    mask: MaskSpec,
    num_targets: Tensor | None = None,
    timestamps: Tensor | None = None,
    position_bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    time_bias_divisor: float = 0.301,
) -> Tensor:
    """`hstu_attention_cached` without a kernel; same arguments, same result."""
    outs = [v.new_zeros(0, v.size(1), v.size(2)).to(q.dtype)]
    for row, cached in enumerate(cache.lengths.tolist()):
        new = slice(int(offsets[row]), int(offsets[row + 1]))
        before = q.new_zeros(cached, *q.shape[1:])  # queries of cached tokens: their rows are cut
        times = None
        if timestamps is not None and cache.timestamps is not None:
            times = torch.cat([cached_row(cache.timestamps, cache, row), timestamps[new]])
        joined = torch.cat([before, q[new]])
        out = hstu_attention_reference(
            joined,
            torch.cat([cached_row(cache.k, cache, row), k[new]]),
            torch.cat([cached_row(cache.v, cache, row), v[new]]),
            torch.tensor([0, joined.size(0)]),
            alpha=alpha,
            divisor=divisor,
            mask=mask,
            num_targets=None if num_targets is None else num_targets[row : row + 1],
            timestamps=times,
            position_bias=position_bias,
            time_bias=time_bias,
            time_bias_divisor=time_bias_divisor,
        )
        outs.append(out[cached:])
    return torch.cat(outs)


def cached_row(values: Tensor, cache: CachedKV, row: int) -> Tensor:
    """The cached tokens of one row, [lengths[row], ...]; `values` is a field of `cache`."""
    length = int(cache.lengths[row])
    if cache.table is None:
        start = int(cache.lengths[:row].sum())
        return values[start : start + length]
    tokens = [
        values[int(cache.table[row, place // cache.page_size]), place % cache.page_size]
        for place in range(length)
    ]
    return torch.stack(tokens) if tokens else values[0, :0]
