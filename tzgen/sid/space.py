# SPDX-License-Identifier: Apache-2.0
"""The space of semantic IDs: how many codes a level has, and codes as sortable keys.

N items, S levels. Everything here works on whole arrays of int64.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tzgen.errors import UserError

Ints = NDArray[np.int64]
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class SidSpace:
    """`codebook`: codes of each level, K_0 ... K_{S-1}; levels may differ."""

    codebook: tuple[int, ...]

    @property
    def levels(self) -> int:
        return len(self.codebook)

    @property
    def offsets(self) -> Ints:
        """First token of each level in one contiguous vocabulary, [S]."""
        return np.concatenate([[0], np.cumsum(self.codebook)[:-1]]).astype(np.int64)

    def check(self, codes: Ints, item_ids: NDArray[Any] | None = None) -> None:
        """Refuse codes of another shape or outside their level, naming the item."""
        if codes.ndim != 2 or codes.shape[1] != self.levels:
            raise UserError(
                f"semantic IDs of shape {codes.shape}: expected [items, {self.levels}], one code "
                f"for each level of the codebook {list(self.codebook)}"
            )
        wrong = (codes < 0) | (codes >= np.array(self.codebook))
        if wrong.any():
            row, level = (int(axis[0]) for axis in np.nonzero(wrong))
            item = row if item_ids is None else item_ids[row]
            raise UserError(
                f"item {item}: code {codes[row, level]} at level {level}; expected 0 to "
                f"{self.codebook[level] - 1}. Was it made with another codebook?"
            )

    def keys(self, codes: Ints) -> Ints:
        """One int64 an item, equal exactly where all codes are; they sort as the codes do.

        Mixed radix where that fits 63 bits, else ranks among the given rows (then only keys of one
        call compare).
        """
        if prod(self.codebook) <= LARGEST:
            found = np.zeros(len(codes), dtype=np.int64)
            for level, size in enumerate(self.codebook):
                found = found * size + codes[:, level]
            return found
        return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def prefix_keys(self, codes: Ints, levels: int) -> Ints:
        """`keys` of the first `levels` codes."""
        return SidSpace(self.codebook[:levels]).keys(codes[:, :levels])


def group_ranks(keys: Ints) -> Ints:
    """Place of each item among those of its key, in the order given: 0, 1, ...; int64 [N]."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.ones(len(keys), dtype=np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(first)
    within = np.arange(len(keys)) - np.repeat(starts, np.diff(np.append(starts, len(keys))))
    ranks = np.empty(len(keys), dtype=np.int64)
    ranks[order] = within
    return ranks


def group_sizes(keys: Ints) -> Ints:
    """How many items have each item's key, int64 [N]."""
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    found: Ints = counts[inverse.reshape(-1)].astype(np.int64)
    return found
