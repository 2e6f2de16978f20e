# SPDX-License-Identifier: Apache-2.0
"""What quantizers ask the other ranks: sums, rows, one rank's word. Without a group: the identity.

Every rank calls each of them in the same order. Tensors stay on their device; gloo and nccl both
serve.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def grouped() -> bool:
    """Whether a process group of more than one rank is up."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of `value` over ranks, the same on all; no gradient passes."""
    if not grouped():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def from_first_rank(value: Tensor) -> Tensor:
    """Rank 0's `value` on every rank; shapes must agree."""
    if not grouped():
        return value
    value = value.contiguous().clone()
    dist.broadcast(value, src=0)
    return value


def gather_rows(rows: Tensor) -> Tensor:
    """The rows [n_r, ...] of all ranks end to end, in rank order; n may differ by rank."""
    if not grouped():
        return rows
    count = torch.tensor([rows.size(0)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    sizes = [int(n) for n in counts]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: rows.size(0)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
