# SPDX-License-Identifier: Apache-2.0
"""Evaluated features as the tensors of a Batch. B rows, L steps, T ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tzgen.data.batch import Ids, Ragged
from tzgen.features.bags import I64, BadValue, Bags
from tzgen.features.base import Feature


@dataclass(frozen=True)
class Steps:
    """The lengths of a sequence, int64 [B], and its longest row; shared by all its features."""

    lengths: Tensor
    max_len: int


@dataclass
class Shared:
    """What the features of one batch share, and the counters of the batch."""

    steps: Mapping[str, Steps]
    counters: dict[str, int]
    _ones: dict[int, Tensor] = field(default_factory=dict)

    def ones(self, count: int) -> Tensor:
        if count not in self._ones:
            self._ones[count] = torch.ones(count, dtype=torch.int64)
        return self._ones[count]


def tensor(array: NDArray[Any]) -> Tensor:
    """A tensor that owns its memory: views of Arrow buffers, which are read-only, are copied."""
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def to_ids(feature: Feature, bags: Bags, shared: Shared, policy: str) -> Ids:
    if feature.checks_range:
        bags = _in_range(feature, bags, shared, policy)
    if feature.value_dim == 1 and bags.lengths is not None:
        _require_single(bags)
    lengths = shared.ones(len(bags.values)) if bags.lengths is None else tensor(bags.lengths)
    weights = None
    if feature.weighted:
        weights = torch.ones(len(bags.values)) if bags.weights is None else tensor(bags.weights)
    steps = shared.steps.get(feature.name)
    if steps is None:
        return Ids(tensor(bags.values), lengths, weights)
    return Ids(tensor(bags.values), lengths, weights, steps.lengths, steps.max_len)


def _require_single(bags: Bags) -> None:
    lengths = bags.all_lengths()
    if lengths.size and int(lengths.max()) > 1:
        bag = int(np.flatnonzero(lengths > 1)[0])
        raise BadValue(
            found=f"{lengths[bag]} ids in one {'row' if bags.steps is None else 'step'}",
            expected="at most one, by value_dim",
            remedy="Set value_dim: 0 for any number of ids.",
            row=bags.row_of_bag(bag),
        )


def _in_range(feature: Feature, bags: Bags, shared: Shared, policy: str) -> Bags:
    ids, limit = bags.values, feature.num_embeddings
    unsigned = ids.view(np.uint64)  # negative ids read as huge
    if not ids.size or int(unsigned.max()) < limit:
        return bags
    wrong = np.flatnonzero(unsigned >= limit)
    if policy == "ERROR":
        at = int(wrong[0])
        raise BadValue(
            found=f"id {ids[at]}",
            expected=f"0 <= id < {limit}",
            remedy="Is this the right column? Else raise the number of ids, or set "
            "data_config.out_of_range_ids to CLIP or DEFAULT.",
            row=bags.row_of(at),
        )
    shared.counters[f"out_of_range/{feature.name}"] = int(wrong.size)
    if policy == "CLIP":
        return Bags(np.clip(ids, 0, limit - 1), bags.lengths, bags.steps, bags.weights, bags.cut)
    return _replaced(bags, wrong, feature.default)


def _replaced(bags: Bags, wrong: I64, default: I64) -> Bags:
    """Ids at `wrong` become the first default id, or vanish where there is none."""
    if len(default):
        ids = bags.values.copy()
        ids[wrong] = default[0]
        return Bags(ids, bags.lengths, bags.steps, bags.weights, bags.cut)
    keep = np.ones(len(bags.values), np.bool_)
    keep[wrong] = False
    lengths = bags.all_lengths()
    bag = np.repeat(np.arange(lengths.size), lengths)[keep]
    left = np.bincount(bag, minlength=lengths.size).astype(np.int64)
    weights = None if bags.weights is None else bags.weights[keep]
    return Bags(bags.values[keep], left, bags.steps, weights, bags.cut)


def to_dense(feature: Feature, bags: Bags, shared: Shared) -> Tensor | Ragged:
    """[B, value_dim], or for a sequence Ragged [L, value_dim]; int64 where integers stayed such."""
    width = max(feature.value_dim, 1)
    if not (bags.lengths is None and width == 1):
        _require_width(bags, width)
    values = bags.values
    whole = values.dtype.kind in "iu" and feature.encoder is None
    matrix = tensor(values.astype(np.int64 if whole else np.float32, copy=False))
    matrix = matrix.reshape(-1, width)
    steps = shared.steps.get(feature.name)
    return matrix if steps is None else Ragged(matrix, steps.lengths, steps.max_len)


def _require_width(bags: Bags, width: int) -> None:
    lengths = bags.all_lengths()
    wrong = np.flatnonzero(lengths != width)
    if wrong.size:
        bag = int(wrong[0])
        raise BadValue(
            found=f"{lengths[bag]} numbers in one {'row' if bags.steps is None else 'step'}",
            expected=f"{width}, by value_dim",
            remedy="Correct value_dim, the column or the separator.",
            row=bags.row_of_bag(bag),
        )
