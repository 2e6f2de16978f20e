# SPDX-License-Identifier: Apache-2.0
"""Rows that are cut into a cached and a new part, and the attention of the joined rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tzgen.ops.hstu_attention import MaskSpec, hstu_attention_reference
from tzgen.ops.hstu_attention_cached import CachedKV

PAGE = 4  # tokens of a page

SPECS = {
    "causal": MaskSpec(),
    "contextual": MaskSpec(contextual_len=3),
    "stable": MaskSpec(contextual_len=3, append_stable=True),
    "window": MaskSpec(max_attn_len=5),
    "window+contextual": MaskSpec(contextual_len=3, max_attn_len=5),
    "window-contextual": MaskSpec(3, 5, window_keeps_contextual=False),
    "window, stable": MaskSpec(3, 5, append_stable=True),
    "tail": MaskSpec(3, 4, full_attn_tail=3),
    "semi-local": MaskSpec(2, sla_k1=3, sla_k2=4),
    "mtgr": MaskSpec(contextual_len=2, timestamp_mask=True),
    "mtgr-static": MaskSpec(2, timestamp_mask=True, realtime_len=4),
}


class Joined:
    """Whole rows with scores of about +- 8, and what `hstu_attention` makes of them."""

    def __init__(
        self,
        spec: MaskSpec,
        *,
        lengths: Sequence[int],
        targets: Sequence[int],
        biased: bool = False,
        dtype: torch.dtype = torch.float64,
        heads: int = 2,
        widths: tuple[int, int] = (6, 10),
        seed: int = 0,
    ) -> None:
        make = torch.Generator().manual_seed(seed)
        total = sum(lengths)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=make, dtype=torch.float64).to(dtype)

        self.lengths, self.targets = list(lengths), list(targets)
        self.starts = [sum(lengths[:row]) for row in range(len(lengths))]
        self.q, self.k = normal(total, heads, widths[0]), normal(total, heads, widths[0])
        self.v = normal(total, heads, widths[1])
        self.times = torch.randint(0, 100_000, (total,), generator=make)
        self.options: dict[str, Any] = {
            "alpha": 1.6 / widths[0] ** 0.5,
            "divisor": 12.0,
            "mask": spec,
        }
        if biased:
            self.options |= {"position_bias": normal(heads, 11), "time_bias": normal(1, 20)}
        self.reads_time = biased or spec.timestamp_mask
        self.out = hstu_attention_reference(
            self.q,
            self.k,
            self.v,
            torch.tensor([0, *lengths]).cumsum(0),
            num_targets=torch.tensor(self.targets, dtype=torch.int64),
            timestamps=self.times if self.reads_time else None,
            **self.options,
        )

    def cut(self, cached: Sequence[int], *, paged: bool = False) -> Cut:
        """The first `cached` tokens of each row in a cache, the others new."""
        old = [torch.arange(s, s + c) for s, c in zip(self.starts, cached, strict=True)]
        new = [
            torch.arange(s + c, s + n)
            for s, c, n in zip(self.starts, cached, self.lengths, strict=True)
        ]
        kept, fresh = torch.cat(old), torch.cat(new)
        held = (self.k[kept], self.v[kept], self.times[kept] if self.reads_time else None)
        cache = contiguous(held, cached)
        return Cut(self, pages_of(cache) if paged else cache, fresh, [len(part) for part in new])


class Cut:
    """Arguments of `hstu_attention_cached` for the new tokens, and the result they must have."""

    def __init__(self, joined: Joined, cache: CachedKV, fresh: Tensor, counts: list[int]) -> None:
        self.cache, self.fresh = cache, fresh
        self.args = (joined.q[fresh], joined.k[fresh], joined.v[fresh], offsets_of(counts), cache)
        targets = [min(count, new) for count, new in zip(joined.targets, counts, strict=True)]
        self.options = {
            **joined.options,
            "num_targets": torch.tensor(targets, dtype=torch.int64),
            "timestamps": joined.times[fresh] if joined.reads_time else None,
        }
        self.want = joined.out[fresh]


def contiguous(held: tuple[Tensor, Tensor, Tensor | None], lengths: Sequence[int]) -> CachedKV:
    k, v, times = held
    counts = torch.tensor(list(lengths), dtype=torch.int64)
    return CachedKV(k, v, counts, max(lengths, default=0), None, times)


def pages_of(cache: CachedKV, page: int = PAGE, seed: int = 3) -> CachedKV:
    """The same tokens in shuffled pages; all that is not a token is NaN, unused entries 0."""
    lengths = cache.lengths.tolist()
    used = [-(-length // page) for length in lengths]
    spare = 3
    order = torch.randperm(sum(used) + spare, generator=torch.Generator().manual_seed(seed))
    k = cache.k.new_full((order.numel(), page, *cache.k.shape[1:]), torch.nan)
    v = cache.v.new_full((order.numel(), page, *cache.v.shape[1:]), torch.nan)
    times = torch.full((order.numel(), page), 1 << 60)
    table = torch.zeros(len(lengths), max(used, default=0) + 1, dtype=torch.int64)
    token = taken = 0
    for row, length in enumerate(lengths):
        table[row, : used[row]] = order[taken : taken + used[row]]
        taken += used[row]
        for place in range(length):
            at = int(table[row, place // page]), place % page
            k[at], v[at] = cache.k[token], cache.v[token]
            if cache.timestamps is not None:
                times[at] = cache.timestamps[token]
            token += 1
    kept = None if cache.timestamps is None else times
    return CachedKV(k, v, cache.lengths, cache.max_len, table, kept)


def offsets_of(counts: Sequence[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    """Equal to a part of the largest value wanted, and nothing unwritten in between."""
    assert got.shape == want.shape and got.dtype == want.dtype
    assert torch.isfinite(got).all(), "not finite"
    error = (got.double() - want.double()).abs()
    largest = want.double().abs().amax().clamp(min=1e-12) if want.numel() else 1.0
    worst = float(error.amax() / largest) if error.numel() else 0.0
    assert worst <= tolerance, f"error {worst:.1e}"
