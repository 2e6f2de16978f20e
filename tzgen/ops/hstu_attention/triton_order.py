# SPDX-License-Identifier: Apache-2.0
"""In which order the Triton kernels take the tiles of a ragged batch: heaviest first.

A tile started last keeps one multiprocessor busy while all others are done, so light ones should
come last. The list also leaves out what a grid over (longest row, rows) would start in vain.
A few small operations on the device, without a host sync; callers that want it once a batch can
keep the result (`TileOrder`) and hand it to every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tzgen.ops.hstu_attention.mask import MaskSpec

# Up to here a list costs more than it saves: starting all rows' last tiles first is good enough.
UNSORTED_TILES = 4


@dataclass(frozen=True)
class TileOrder:
    """codes int64 [slots] = row * tiles_per_row + tile, heaviest first; None: by tile alone."""

    codes: Tensor | None
    tiles_per_row: int
    num_rows: int
    slots: int


def tile_order(
    offsets: Tensor,
    num_targets: Tensor | None,
    mask: MaskSpec,
    *,
    block: int,
    max_len: int,
    total: int,
    by_key: bool = False,
    listed: bool | None = None,
) -> TileOrder:
    """Order of the `block`-token tiles of all rows; `by_key`: tiles of keys, else of queries.

    offsets int64 [B + 1], num_targets int64 [B]; max_len and total (tokens of all rows) are host
    numbers. `listed` forces or forbids the list.
    """
    count = offsets.numel() - 1
    tiles = max(1, -(-min(max_len, total) // block))
    if listed is None:
        listed = tiles > UNSORTED_TILES
    if not listed:
        return TileOrder(None, tiles, count, count * tiles)
    lengths = offsets.diff()[:, None]
    ends = lengths if num_targets is None else lengths - num_targets[:, None]
    first = torch.arange(0, tiles * block, block, device=offsets.device)
    cost = lengths - first if by_key else torch.minimum(first + block, ends)
    reach = _reach(mask)
    if reach is not None:
        cost = cost.clamp(max=reach + block)
    if by_key:  # a target is a key of its own query only
        cost = torch.where(first < ends, cost, 1)
    cost = torch.where(first < lengths, cost.clamp(min=1), 0)
    slots = min(count * tiles, total // block + count)  # rounding up adds at most a tile a row
    codes = cost.flatten().argsort(descending=True, stable=True)[:slots]
    return TileOrder(codes, tiles, count, slots)


def _reach(mask: MaskSpec) -> int | None:
    """Tokens that one can see at most, where the mask bounds that."""
    if mask.semi_local:
        return mask.global_end + mask.sla_k1
    return mask.max_attn_len + mask.contextual_len if mask.max_attn_len > 0 else None
