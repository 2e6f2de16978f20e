# SPDX-License-Identifier: Apache-2.0
"""Index arithmetic on ragged rows, without asking the device for a size and without padding.

B rows; a ragged tensor is values [L, ...] with lengths int64 [B] or offsets int64 [B + 1]. Sizes
are host numbers taken from shapes, so everything here survives torch.export with dynamic B and L.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def offsets_of(lengths: Tensor) -> Tensor:
    """int64 [B] -> int64 [B + 1], from 0 to the sum."""
    return torch.cat([lengths.new_zeros(1), torch.cumsum(lengths, 0)])


def row_index(lengths: Tensor, total: int) -> Tensor:
    """Row of each of the `total` tokens, int64 [total]."""
    rows = torch.arange(lengths.size(0), device=lengths.device)
    return torch.repeat_interleave(rows, lengths, output_size=total)


def place_index(lengths: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Row of each token and its place in that row, both int64 [total]."""
    rows = row_index(lengths, total)
    starts = torch.cumsum(lengths, 0) - lengths
    places = torch.arange(total, device=lengths.device) - starts.index_select(0, rows)
    return rows, places


def flip_index(lengths: Tensor, total: int) -> Tensor:
    """Permutation that reverses every row: `values.index_select(0, flip_index(...))`."""
    rows, places = place_index(lengths, total)
    last = torch.cumsum(lengths, 0) - 1
    return last.index_select(0, rows) - places


def concat_places(lengths: Sequence[Tensor], totals: Sequence[int]) -> list[Tensor]:
    """Where the tokens of each part land when row b becomes [part 0's row | part 1's row | ...].

    lengths: one int64 [B] a part; totals: tokens of each part. Returns int64 [total] a part, which
    together are a permutation. They also split: `x.index_select(0, places[p])` takes part p out.
    """
    starts = torch.cumsum(torch.stack(list(lengths)).sum(0), 0)
    before = starts - torch.stack(list(lengths)).sum(0)
    places = []
    for part, total in zip(lengths, totals, strict=True):
        rows, within = place_index(part, total)
        places.append(before.index_select(0, rows) + within)
        before = before + part
    return places


def concat(parts: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
    """Lay the parts [total_p, ...] out at their `concat_places`; differentiable."""
    target = torch.cat(list(places))
    source = torch.zeros_like(target).scatter(
        0, target, torch.arange(target.size(0), device=target.device)
    )
    return torch.cat(list(parts)).index_select(0, source)
