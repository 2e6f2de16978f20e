# SPDX-License-Identifier: Apache-2.0
"""How good semantic IDs are, measured over a whole catalogue. N items, S levels, D dimensions.

unique ratio             distinct IDs over items; of the tokenizer's codes and of the final ones
used, perplexity         of each level: share of codes in use; exp of the entropy of their use
prefix entropy           of the first s codes, in bits, and the most that N items allow
neighbour share          of an item's nearest items by vector, how many share its first s codes;
                         `chance` is what a random assignment with the same counts would give
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tzgen.sid.space import Ints, SidSpace, group_sizes
from tzgen.sid.table import SidTable

Floats = NDArray[np.float32]
NEIGHBOURS, SAMPLE, BLOCK = 10, 2000, 256


@dataclass(frozen=True)
class LevelQuality:
    """One level: codes there are, codes in use, exp of their entropy, items of the busiest code."""

    size: int
    used: int
    perplexity: float
    busiest: int


@dataclass(frozen=True)
class PrefixQuality:
    """The first s codes: distinct prefixes, their entropy in bits, items of the busiest prefix."""

    distinct: int
    entropy: float
    busiest: int


@dataclass(frozen=True)
class Quality:
    """Of one table of codes."""

    items: int
    distinct: int
    unique_ratio: float
    items_alone: int
    largest_group: int
    levels: tuple[LevelQuality, ...]
    prefixes: tuple[PrefixQuality, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class NeighbourShare:
    """Share of nearest items with the same first s codes, and what chance gives; one a level."""

    share: tuple[float, ...]
    chance: tuple[float, ...]
    items: int


def measure(codes: Ints, space: SidSpace) -> Quality:
    """Everything that codes [N, S] alone tell."""
    sizes = group_sizes(space.keys(codes))
    distinct = len(np.unique(space.keys(codes)))
    return Quality(
        items=len(codes),
        distinct=distinct,
        unique_ratio=distinct / max(len(codes), 1),
        items_alone=int((sizes == 1).sum()),
        largest_group=int(sizes.max(initial=0)),
        levels=tuple(_level(codes[:, s], size) for s, size in enumerate(space.codebook)),
        prefixes=tuple(
            _prefix(space.prefix_keys(codes, s + 1)) for s in range(len(space.codebook))
        ),
    )


def _level(codes: Ints, size: int) -> LevelQuality:
    uses = np.bincount(codes, minlength=size)
    return LevelQuality(
        size, int((uses > 0).sum()), float(np.exp(_entropy(uses))), int(uses.max(initial=0))
    )


def _prefix(keys: Ints) -> PrefixQuality:
    _, counts = np.unique(keys, return_counts=True)
    return PrefixQuality(
        len(counts), float(_entropy(counts) / np.log(2.0)), int(counts.max(initial=0))
    )


def _entropy(counts: Ints) -> float:
    """In nats."""
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(share * np.log(share)).sum())


def neighbour_share(
    table: SidTable, vectors: Floats, *, neighbours: int = NEIGHBOURS, seed: int = 0
) -> NeighbourShare:
    """Over at most SAMPLE items; vectors [N, D] in the table's order, compared by cosine."""
    rng = np.random.default_rng(seed)
    count = len(table)
    rows = np.sort(rng.permutation(count)[:SAMPLE])
    k = min(neighbours, count - 1)
    if k < 1:
        return NeighbourShare((), (), count)
    keys = [table.space.prefix_keys(table.codes, s + 1) for s in range(table.space.levels)]
    hits = np.zeros(len(keys))
    for block in np.array_split(rows, max(1, len(rows) // BLOCK)):
        near = nearest_items(vectors, block, k)
        for level, key in enumerate(keys):
            hits[level] += (key[near] == key[block][:, None]).sum()
    chance = []
    for key in keys:
        sizes = group_sizes(key)
        chance.append(float(((sizes - 1) / (count - 1)).mean()))
    share = tuple(float(hit) / (len(rows) * k) for hit in hits)
    return NeighbourShare(share, tuple(chance), len(rows))


def nearest_items(vectors: Floats, rows: Ints, k: int) -> Ints:
    """int64 [rows, k]: the items with the largest cosine to each of `rows`, itself apart; the
    order among them is not defined."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    scores = unit[rows] @ unit.T
    scores[np.arange(len(rows)), rows] = -np.inf
    found: Ints = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return found


def largest_groups(codes: Ints, space: SidSpace, count: int) -> list[Ints]:
    """Rows of the `count` most crowded IDs, most crowded first; IDs of one item are left out."""
    keys = space.keys(codes)
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], keys[order][1:] != keys[order][:-1]]))
    sizes = np.diff(np.append(starts, len(keys)))
    crowded = np.argsort(-sizes, kind="stable")[:count]
    return [order[starts[g] : starts[g] + sizes[g]] for g in crowded if sizes[g] > 1]
