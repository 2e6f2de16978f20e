# SPDX-License-Identifier: Apache-2.0
"""The lookup in plain differentiable PyTorch, for tests, and the index arithmetic of all paths.

T ids, N bags, V rows, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

NONE, SUM, MEAN = range(3)


def bag_of_id(lengths: Tensor, num_ids: int) -> Tensor:
    """int64 [T]: the bag each id belongs to."""
    bags = torch.arange(lengths.size(0), device=lengths.device)
    return torch.repeat_interleave(bags, lengths, output_size=num_ids)


def id_scale(lengths: Tensor, weights: Tensor | None, mode: int, num_ids: int) -> Tensor | None:
    """float32 [T]: what each row is multiplied by before the sum of its bag; None means 1."""
    if mode != MEAN:
        return weights
    share = lengths.clamp(min=1).to(torch.float32).reciprocal()
    share = share.index_select(0, bag_of_id(lengths, num_ids))
    return share if weights is None else share * weights


def embedding_lookup(
    weight: Tensor, values: Tensor, lengths: Tensor | None, weights: Tensor | None, mode: int
) -> Tensor:
    """As the public op: float32 [T, D] or [N, D]."""
    rows = weight[values].float()
    if mode == NONE:
        return rows if weights is None else rows * weights.unsqueeze(1)
    assert lengths is not None, "sum and mean need lengths"
    pooled = []
    for bag, scales in zip(
        rows.split(lengths.tolist()),
        (torch.ones(len(rows)) if weights is None else weights).split(lengths.tolist()),
        strict=True,
    ):
        total = (bag * scales.to(bag.device).unsqueeze(1)).sum(0)
        pooled.append(total / max(len(bag), 1) if mode == MEAN else total)
    return torch.stack(pooled) if pooled else rows[:0]
