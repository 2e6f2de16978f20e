# SPDX-License-Identifier: Apache-2.0
"""What quantizers ask the other ranks: sums, rows, one rank's word. Without a group: the identity.

Every rank calls each of them in the same order. Tensors stay on their device; gloo and nccl both
serve.
"""

from __future__ import annotations

from collections.abc import Mapping

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
    sizes = row_counts(rows)
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: rows.size(0)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def gather_with_gradient(rows: Tensor) -> Tensor:
    """As `gather_rows`, and gradients flow back to the rank that a row came from."""
    if not grouped():
        return rows
    from torch.distributed.nn.functional import all_gather  # imports the rpc layer: only if needed

    sizes = row_counts(rows)
    padded = torch.nn.functional.pad(rows, (0, 0) * (rows.dim() - 1) + (0, max(sizes) - len(rows)))
    parts = all_gather(padded.contiguous())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def row_counts(rows: Tensor) -> list[int]:
    """How many rows every rank has."""
    if not grouped():
        return [rows.size(0)]
    count = torch.tensor([rows.size(0)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    return [int(n) for n in counts]


def first_row(rows: Tensor) -> int:
    """Where this rank's rows start among those of `gather_rows`."""
    if not grouped():
        return 0
    return sum(row_counts(rows)[: dist.get_rank()])


def of_all_ranks(named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Rows [n, ...] of this rank -> rows of all ranks, with gradients, and where this rank's start.

    The names, of which there is at least one, are the same on every rank.
    """
    first = first_row(next(iter(named.values())))
    return {name: gather_with_gradient(rows) for name, rows in named.items()}, first
