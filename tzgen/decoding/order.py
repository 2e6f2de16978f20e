# SPDX-License-Identifier: Apache-2.0
"""Codes sorted as words are: by the first level, then the second, ..., with array operations only.

N items, L levels of V_l codes. Neighbouring levels are packed into one int64 key as long as their
bits fit (8 levels of 256, 4 of 8192), so that most catalogues cost one sort; wider ones are sorted
once a key, last key first, which is right because the sorts are stable. Nothing is ever multiplied
up to V_0 * V_1 * ... , which passes 2^63 early.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

KEY_BITS = 62


@dataclass(frozen=True)
class Key:
    """Levels first..last in one int64: level l's code in bits [shift_l, shift_l + bits_l)."""

    first: int
    shifts: tuple[int, ...]
    bits: tuple[int, ...]

    def pack(self, codes: Tensor) -> Tensor:
        """int64 [N, L] -> int64 [N]."""
        packed = codes[:, self.first] << self.shifts[0]
        for place, shift in enumerate(self.shifts[1:], self.first + 1):
            packed |= codes[:, place] << shift
        return packed


def keys_of(sizes: Sequence[int]) -> list[Key]:
    """The fewest keys of at most 62 bits, each a run of levels."""
    runs: list[list[int]] = []
    for size in sizes:
        bits = max(1, (size - 1).bit_length())
        if runs and sum(runs[-1]) + bits <= KEY_BITS:
            runs[-1].append(bits)
        else:
            runs.append([bits])
    keys, first = [], 0
    for run in runs:
        shifts = tuple(sum(run[place + 1 :]) for place in range(len(run)))
        keys.append(Key(first, shifts, tuple(run)))
        first += len(run)
    return keys


@dataclass(frozen=True)
class Sorted:
    """The order int64 [N] (ties by row number), and the packed keys in that order."""

    order: Tensor
    keys: tuple[Key, ...]
    packed: tuple[Tensor, ...]

    def levels(self) -> Iterator[tuple[Tensor, Tensor]]:
        """A level at a time: where a new prefix starts (int64 [n_l]), and the codes there."""
        changed = torch.zeros(self.order.size(0), dtype=torch.bool, device=self.order.device)
        changed[:1] = True
        for key, packed in zip(self.keys, self.packed, strict=True):
            for shift, bits in zip(key.shifts, key.bits, strict=True):
                prefix = packed >> shift
                changed[1:] |= prefix[1:] != prefix[:-1]
                starts = changed.nonzero().squeeze(1)
                yield starts, prefix.index_select(0, starts) & ((1 << bits) - 1)


def sort_codes(codes: Tensor, sizes: Sequence[int]) -> Sorted:
    """int64 [N, L], every code of level l in [0, sizes[l]), into lexicographic order."""
    keys = keys_of(sizes)
    packed = [key.pack(codes) for key in keys]
    order: Tensor | None = None
    for place in reversed(range(len(keys))):
        column = packed[place] if order is None else packed[place].index_select(0, order)
        step = torch.sort(column, stable=True)
        order = step.indices if order is None else order.index_select(0, step.indices)
        if len(keys) == 1:
            return Sorted(order, tuple(keys), (step.values,))
    assert order is not None, "sizes is empty"
    return Sorted(order, tuple(keys), tuple(column.index_select(0, order) for column in packed))
