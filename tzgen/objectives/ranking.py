# SPDX-License-Identifier: Apache-2.0
"""Ranking measures as pure functions: exact, ties counted half, weights where rows are resampled.

N rows, G groups. All work in float64; nothing loops over rows or groups in Python.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class SortedScores:
    """Scores and labels, sorted once; the AUC for any row weights follows in one pass.

    scores [N], labels [N] (positive above 0).
    """

    def __init__(self, scores: ArrayLike, labels: ArrayLike) -> None:
        values = np.asarray(scores, dtype=np.float64)
        self.order = np.argsort(values, kind="stable")
        values = values[self.order]
        self.positive = (np.asarray(labels)[self.order] > 0).astype(np.float64)
        self.starts = _starts(values)
        self.broken = bool(np.isnan(values).any())

    def auc(self, weights: ArrayLike | None = None) -> float:
        """Chance that a positive scores above a negative, ties half; NaN without both classes.

        weights [N], in the order the scores were given in.
        """
        if self.broken or not len(self.order):
            return float("nan")
        if weights is None:
            positive, negative = self.positive, 1.0 - self.positive
        else:
            sorted_weights = np.asarray(weights, dtype=np.float64)[self.order]
            positive = sorted_weights * self.positive
            negative = sorted_weights - positive
        positives = np.add.reduceat(positive, self.starts)
        negatives = np.add.reduceat(negative, self.starts)
        return float(auc_of_histogram(np.stack([negatives, positives])))


def auc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve.

    Pairs (positive, negative): 0.8 > 0.5, 0.8 > 0.3, 0.5 = 0.5, 0.5 > 0.3 -> 3.5 of 4.

    >>> auc([0.8, 0.5, 0.5, 0.3], [1, 1, 0, 0])
    0.875
    >>> auc([0.8, 0.5], [1, 1])
    nan
    """
    return SortedScores(scores, labels).auc(weights)


def auc_of_histogram(histogram: F64) -> F64:
    """AUC [...] from counts [..., 2 (negative, positive), bins] over ascending score bins."""
    negative, positive = histogram[..., 0, :], histogram[..., 1, :]
    below = np.cumsum(negative, axis=-1) - negative
    area = (positive * (below + negative / 2)).sum(-1)
    pairs = positive.sum(-1) * negative.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(pairs > 0, area / pairs, np.nan))


def auc_by_group(scores: ArrayLike, labels: ArrayLike, groups: ArrayLike) -> tuple[I64, F64]:
    """(distinct groups ascending [G], AUC of each [G]); NaN in groups of one class.

    >>> groups, values = auc_by_group([0.9, 0.1, 0.2, 0.8, 0.5], [1, 0, 1, 0, 1], [7, 7, 3, 3, 9])
    >>> groups.tolist(), values.tolist()
    ([3, 7, 9], [0.0, 1.0, nan])
    """
    keys, values = np.asarray(groups, dtype=np.int64), np.asarray(scores, dtype=np.float64)
    if not len(keys):
        return keys, values
    order = np.lexsort((values, keys))
    keys, values = keys[order], values[order]
    positive = (np.asarray(labels)[order] > 0).astype(np.float64)
    ties = np.union1d(_starts(keys), _starts(values))
    p, n = np.add.reduceat(positive, ties), np.add.reduceat(1.0 - positive, ties)
    first = np.searchsorted(ties, _starts(keys))  # the first tie of each group
    below = np.cumsum(n) - n
    sizes = np.diff(np.append(first, len(ties)))
    below = below - np.repeat(below[first], sizes)
    area = np.add.reduceat(p * (below + n / 2), first)
    pairs = np.add.reduceat(p, first) * np.add.reduceat(n, first)
    broken = np.add.reduceat(np.isnan(values[ties]), first) > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        return keys[_starts(keys)], np.where((pairs > 0) & ~broken, area / pairs, np.nan)


def concordance(
    scores: Tensor,
    labels: Tensor,
    groups: Tensor,
    num_groups: int,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(credit [G], pairs [G]) over the pairs inside a group whose labels differ, float64.

    A pair ordered as its labels earns 1, one of equal scores 1/2. weights [N] count rows several
    times. O(N log N), no transfer to the host.

    >>> scores, labels = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 30.0, 20.0])
    >>> credit, pairs = concordance(scores, labels, torch.zeros(3, dtype=torch.long), 1)
    >>> credit.item(), pairs.item()  # (1, 2) and (1, 3) agree, (2, 3) does not
    (2.0, 3.0)
    """
    w = torch.ones_like(scores, dtype=torch.float64) if weights is None else weights.double()
    # groups ascend in x and descend in y, so that no pair across groups is ever dominated
    x, up, down = (
        dense_rank(groups, labels),
        dense_rank(-groups, scores),
        dense_rank(-groups, -scores),
    )
    zeros = torch.zeros(num_groups, dtype=torch.float64, device=scores.device)
    agree = zeros.index_add(0, groups, w * dominated(x, up, w))
    disagree = zeros.index_add(0, groups, w * dominated(x, down, w))
    size = zeros.index_add(0, groups, w)
    same = torch.zeros_like(w).index_add(0, x, w)  # weight of each (group, label)
    squares = zeros.index_add(0, groups, w * same[x])
    pairs = (size * size - squares) / 2
    return (agree - disagree + pairs) / 2, pairs


def dominated(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """For each j the weight of all i with x_i < x_j and y_i < y_j: [N] float64.

    x, y int64 [N]. Elements in the order of y are split by the bits of their rank in x, from the
    highest: those with a set bit lie behind the ones before them without it (a wavelet tree).
    """
    count = x.numel()
    if not count:
        return weights.double()
    # equal x: larger y first, so that they do not dominate; equal y: larger x first
    by_y = torch.argsort(y, descending=True, stable=True)
    rank = torch.empty_like(x)
    rank[by_y[torch.argsort(x[by_y], stable=True)]] = torch.arange(count, device=x.device)
    by_x = torch.argsort(rank, descending=True, stable=True)
    sequence = rank[by_x[torch.argsort(y[by_x], stable=True)]]
    by_rank = torch.zeros(count, dtype=torch.float64, device=x.device)
    by_rank[rank] = weights.double()
    found = torch.zeros_like(by_rank)
    position = torch.arange(count, device=x.device)
    for bit in range((count - 1).bit_length() - 1, -1, -1):
        one = (sequence >> bit) & 1
        start = (sequence >> (bit + 1)) << (bit + 1)  # ranks fill [0, N), so blocks start here
        zero_weight = by_rank[sequence] * (1 - one)
        before = torch.cumsum(zero_weight, 0) - zero_weight
        found[sequence] += (before - before[start]) * one
        zeros = torch.cumsum(1 - one, 0) - (1 - one) - (start >> 1)
        moved = torch.where(one == 1, (1 << bit) + position - start - zeros, zeros) + start
        arranged = torch.empty_like(sequence)
        arranged[moved] = sequence
        sequence = arranged
    return found[rank]


def dense_rank(*keys: Tensor) -> Tensor:
    """int64 [N]: the place of a row's keys among the distinct ones, first key most significant."""
    order = torch.arange(keys[0].numel(), device=keys[0].device)
    for key in reversed(keys):
        order = order[torch.argsort(key[order], stable=True)]
    changes = torch.zeros(max(order.numel() - 1, 0), dtype=torch.bool, device=order.device)
    for key in keys:
        ordered = key[order]
        changes |= ordered[1:] != ordered[:-1]
    ranks = torch.zeros_like(order)
    ranks[order[1:]] = torch.cumsum(changes.long(), 0)
    return ranks


def top_of_lists(
    scores: Tensor, gains: Tensor, lists: Tensor, num_lists: int, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(hits, positives, DCG, ideal DCG), float64 [lists], of the first k of every list.

    scores [N], gains [N] >= 0 (a positive is above 0), lists int64 [N]. Equal scores share their
    places: each counts by the mean over all orders (McSherry and Najork 2008).

    >>> scores, gains = torch.tensor([0.9, 0.5, 0.5]), torch.tensor([0.0, 1.0, 0.0])
    >>> hits, positives, dcg, ideal = top_of_lists(scores, gains, torch.zeros(3).long(), 1, k=2)
    >>> hits.item(), positives.item()  # second place is shared by two: half a hit
    (0.5, 1.0)
    >>> round(dcg.item(), 4), ideal.item()  # half of 1 / log2(3)
    (0.3155, 1.0)
    """
    gains = gains.double().clamp(min=0)
    order, place = _places(scores, lists, num_lists)
    ties = dense_rank(lists[order], -scores[order])
    inside = (place < k).double()
    discount = inside / torch.log2(place.double() + 2)
    zeros = torch.zeros(num_lists, dtype=torch.float64, device=scores.device)
    positive = (gains > 0).double()
    of = lists[order]
    hits = zeros.index_add(0, of, _tie_mean(inside, ties) * positive[order])
    dcg = zeros.index_add(0, of, _tie_mean(discount, ties) * gains[order])
    best, best_place = _places(gains, lists, num_lists)
    best_discount = (best_place < k).double() / torch.log2(best_place.double() + 2)
    ideal = zeros.index_add(0, lists[best], best_discount * gains[best])
    return hits, zeros.index_add(0, lists, positive), dcg, ideal


def _places(scores: Tensor, lists: Tensor, num_lists: int) -> tuple[Tensor, Tensor]:
    """(rows ordered by list, then falling score [N]; place of each in its list [N])."""
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(lists[order], stable=True)]
    sizes = torch.zeros(num_lists, dtype=torch.long, device=lists.device)
    sizes = sizes.index_add(0, lists, torch.ones_like(lists))
    starts = torch.cumsum(sizes, 0) - sizes
    return order, torch.arange(order.numel(), device=lists.device) - starts[lists[order]]


def _tie_mean(values: Tensor, ties: Tensor) -> Tensor:
    zeros = torch.zeros_like(values)
    sums = zeros.index_add(0, ties, values)
    return (sums / zeros.index_add(0, ties, torch.ones_like(values)).clamp(min=1))[ties]


def _starts(ordered: NDArray[np.generic]) -> I64:
    """Where each run of equal values begins."""
    if not len(ordered):
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])).astype(np.int64)
