# SPDX-License-Identifier: Apache-2.0
"""How STU attention in plain PyTorch (`cpu.py`) cuts a batch: rows together, strips, key ranges.

Rows of at most `TOGETHER` tokens are sorted, longest first, and laid out as [G, H, n, d], n the
longest. A strip of queries [start, stop) is computed for the first `count` rows alone, those that
reach so far, against the keys that it can see: so neither the padding nor the upper half of the
scores costs much, and the fewer and larger operators keep all threads busy. Longer rows (with a
mask that lets whole tiles drop out: than `TOGETHER_SPARSE`) are laid out alone and cut into
`BLOCK`-row blocks against the spans that they can see (`mask.blocks`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention.mask import Block, MaskSpec, blocks

TOGETHER = 1024  # longest row that is computed together with others
TOGETHER_SPARSE = 256  # the same under windows, semi-local attention or times
STRIP = 32  # queries of a strip of rows together ...
LONG_STRIP = 64  # ... and of rows beyond `LONG`
LONG = 256
TILE_BYTES = 4 << 20  # score bytes of a strip: fits the last cache, and the layouts stay small
BLOCK = 256  # queries of a block of a long row
KEYS = 1024  # keys of a span of a long row: bounds the tile to H * BLOCK * KEYS numbers


@dataclass(frozen=True)
class Keys:
    """Keys [start, stop); those before `masked` are seen by every query of the strip."""

    start: int
    stop: int
    masked: int


@dataclass(frozen=True)
class Strip:
    """Queries [start, stop) of the first `count` rows; keys outside `keys` are invisible.

    `own_key`: but for a query's own.
    """

    start: int
    stop: int
    count: int
    keys: tuple[Keys, ...]
    own_key: bool


@dataclass(frozen=True)
class Rows:
    """G rows laid out together, n places each; a place past the end repeats the last token."""

    group: int
    length: int  # n
    start: int  # packed token of the first place of a single row
    source: Tensor  # int64 [G * n]: the packed token of each place
    tokens: Tensor  # int64: the packed tokens, ascending ...
    places: Tensor  # int64: ... and their places among G * n
    kept: Tensor | None  # bool [G, 1, n, 1]: places that hold a token; None when all do
    history_end: Tensor  # int64 [G, 1, 1]
    end: Tensor  # int64 [G, 1, 1]: the number of tokens
    strips: tuple[Strip, ...]


@dataclass(frozen=True)
class _Row:
    start: int
    length: int
    targets: int


def plan(offsets: Tensor, call: Call, heads: int) -> Iterator[Rows]:
    """The long rows one by one, then rows of like length together; empty rows drop out."""
    bounds = offsets.tolist()
    count = len(bounds) - 1
    targets = [0] * count if call.num_targets is None else call.num_targets.tolist()
    rows = [_Row(bounds[r], bounds[r + 1] - bounds[r], targets[r]) for r in range(count)]
    rows = sorted((row for row in rows if row.length > 0), key=lambda row: -row.length)
    group: list[_Row] = []
    tokens = 0
    for row in rows:
        if row.length > _together(call.mask):
            yield _alone(row, call.mask, offsets.device)
            continue
        tokens += row.length
        if group and not _fits(group[0].length, len(group) + 1, tokens, heads):
            yield _layout(group, call.mask, offsets.device)
            group, tokens = [], row.length
        group.append(row)
    if group:
        yield _layout(group, call.mask, offsets.device)


def _sparse(spec: MaskSpec) -> bool:
    """Whether a query may miss keys that lie before its strip, other than targets."""
    return spec.max_attn_len > 0 or spec.semi_local or spec.timestamp_mask


def _together(spec: MaskSpec) -> int:
    return min(TOGETHER, TOGETHER_SPARSE) if _sparse(spec) else TOGETHER


def _strip(longest: int) -> int:
    return STRIP if longest <= LONG else LONG_STRIP


def _fits(longest: int, count: int, tokens: int, heads: int) -> bool:
    """Whether so many rows may lie together: bounded tiles, and at most half of the places empty.

    The tile of a strip has no more than `tokens` keys, and a strip's width for each row.
    """
    width = min(_strip(longest), longest)
    small = heads * width * tokens * 4 <= TILE_BYTES
    return small and count * longest <= 2 * tokens


def _alone(row: _Row, spec: MaskSpec, device: torch.device) -> Rows:
    """A long row, cut into blocks and spans."""
    place = torch.arange(row.length, device=device)
    token = place + row.start
    end = torch.full((1, 1, 1), row.length, device=device)
    strips = tuple(_of_block(block) for block in blocks(row.length, row.targets, spec, BLOCK, KEYS))
    return Rows(1, row.length, row.start, token, token, place, None, end - row.targets, end, strips)


def _of_block(block: Block) -> Strip:
    keys = tuple(Keys(s.start, s.stop, s.stop if s.full else s.start) for s in block.spans)
    return Strip(block.start, block.stop, 1, keys, block.own_key)


def _layout(group: list[_Row], spec: MaskSpec, device: torch.device) -> Rows:
    """Rows together, longest first."""
    longest = group[0].length
    starts, lengths, targets = (
        torch.tensor(column, device=device)
        for column in zip(*((row.start, row.length, row.targets) for row in group), strict=True)
    )
    place = torch.arange(longest, device=device)
    source = (starts[:, None] + torch.minimum(place, lengths[:, None] - 1)).flatten()
    held = place < lengths[:, None]
    places = torch.nonzero(held.flatten()).flatten()
    tokens, order = source.index_select(0, places).sort()
    ragged = group[-1].length < longest
    return Rows(
        len(group),
        longest,
        group[0].start,
        source,
        tokens,
        places.index_select(0, order),
        held[:, None, :, None] if ragged else None,
        (lengths - targets).view(-1, 1, 1),
        lengths.view(-1, 1, 1),
        tuple(_strips(group, spec)),
    )


def _strips(group: list[_Row], spec: MaskSpec) -> Iterator[Strip]:
    longest = group[0].length
    step = _strip(longest)
    for start in range(0, longest, step):
        stop = min(start + step, longest)
        count = sum(row.length > start for row in group)
        end = min(row.length - row.targets for row in group[:count])
        ahead = spec.timestamp_mask or (start < spec.contextual_len and not spec.append_stable)
        last = longest if ahead else max(stop, min(spec.contextual_len, longest))
        masked = min(start, end)
        if _sparse(spec) or masked < spec.contextual_len:
            masked = 0
        yield Strip(start, stop, count, (Keys(0, last, masked),), own_key=False)
