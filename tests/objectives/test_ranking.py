# SPDX-License-Identifier: Apache-2.0
"""Ranking measures against scikit-learn and loops over pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score, roc_auc_score

from tzgen.objectives import ranking


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("levels", [2, 5, 10**9])
@pytest.mark.parametrize("count", [2, 3, 64, 1000])
def test_auc_is_scikit_learns(count: int, levels: int) -> None:
    g = rng(count)
    scores, labels = g.integers(0, levels, count) / levels, g.integers(0, 2, count)
    labels[:2] = [0, 1]
    assert ranking.auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    weights = g.integers(0, 4, count) + (np.arange(count) < 2)
    expected = roc_auc_score(labels, scores, sample_weight=weights)
    assert ranking.auc(scores, labels, weights) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "labels"), [([], []), ([0.5], [1]), ([0.1, 0.2], [0, 0]), ([0.1, math.nan], [0, 1])]
)
def test_auc_is_undefined(scores: list[float], labels: list[int]) -> None:
    assert math.isnan(ranking.auc(scores, labels))


def test_auc_by_group_is_the_auc_of_each() -> None:
    g = rng()
    scores, labels = g.integers(0, 6, 500) / 6, g.integers(0, 2, 500)
    groups = g.integers(-40, 40, 500) * 10**15
    keys, values = ranking.auc_by_group(scores, labels, groups)
    assert keys.tolist() == sorted(set(groups.tolist()))
    for key, value in zip(keys, values, strict=True):
        mine = groups == key
        np.testing.assert_allclose(value, ranking.auc(scores[mine], labels[mine]), atol=1e-12)
    assert np.isnan(ranking.auc_by_group([0.1, math.nan, 0.3], [0, 1, 1], [1, 1, 2])[1]).all()


def concordance_by_pairs(
    s: np.ndarray, y: np.ndarray, group: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    credit, pairs = np.zeros(group.max(initial=0) + 1), np.zeros(group.max(initial=0) + 1)
    for i in range(len(s)):
        for j in range(i):
            if group[i] == group[j] and y[i] != y[j]:
                agree = np.sign(s[i] - s[j]) * np.sign(y[i] - y[j])
                credit[group[i]] += w[i] * w[j] * (agree + 1) / 2
                pairs[group[i]] += w[i] * w[j]
    return credit, pairs


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 63, 64, 65, 100])
@pytest.mark.parametrize("levels", [3, 10**6])
def test_concordance_counts_every_pair(count: int, levels: int) -> None:
    g = rng(count)
    scores, labels = g.integers(0, levels, count) * 1.0, g.integers(0, 4, count) * 1.0
    groups, weights = g.integers(0, 3, count), g.integers(0, 3, count) * 1.0
    for w in (np.ones(count), weights):
        want = concordance_by_pairs(scores, labels, groups, w)
        tensors = (torch.from_numpy(a) for a in (scores, labels, groups))
        got = ranking.concordance(*tensors, int(groups.max()) + 1, torch.from_numpy(w))  # type: ignore[misc]
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a.numpy(), b, atol=1e-9)


@pytest.mark.parametrize("count", [0, 1, 2, 5, 16, 17, 90])
def test_dominated_is_strict_in_both(count: int) -> None:
    g = rng(count)
    x, y = g.integers(0, 6, count), g.integers(0, 6, count)
    w = g.integers(0, 3, count) * 1.0
    want = [w[(x < x[j]) & (y < y[j])].sum() for j in range(count)]
    got = ranking.dominated(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(w))
    assert got.tolist() == want


def test_concordance_with_binary_labels_is_the_auc() -> None:
    g = rng()
    scores, labels = g.integers(0, 50, 3000) / 50, g.integers(0, 2, 3000)
    zeros = torch.zeros(3000, dtype=torch.long)
    credit, pairs = ranking.concordance(
        torch.from_numpy(scores), torch.from_numpy(labels), zeros, 1
    )
    assert (credit / pairs).item() == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_concordance_of_nothing() -> None:
    empty = torch.zeros(0)
    credit, pairs = ranking.concordance(empty, empty, empty.long(), 1)
    assert credit.item() == pairs.item() == 0.0


def test_dense_rank() -> None:
    a, b = torch.tensor([2, 1, 2, 1, 1]), torch.tensor([0.5, 0.5, 0.1, 0.5, 0.9])
    assert ranking.dense_rank(a, b).tolist() == [3, 0, 2, 0, 1]
    assert ranking.dense_rank(torch.zeros(0)).tolist() == []


@pytest.mark.parametrize("levels", [2, 10**6])
@pytest.mark.parametrize("k", [1, 3, 100])
def test_ndcg_of_lists_is_scikit_learns(levels: int, k: int) -> None:
    g = rng(k)
    sizes = [0, 2, 7, 0, 12, 3]
    lists = np.repeat(np.arange(6), sizes)
    shuffled = g.permutation(len(lists))
    scores, gains = g.integers(0, levels, len(lists)) * 1.0, g.integers(0, 4, len(lists)) * 1.0
    tensors = (torch.from_numpy(a[shuffled]) for a in (scores, gains, lists))
    _, positives, dcg, ideal = ranking.top_of_lists(*tensors, 6, k)  # type: ignore[misc]
    for number in (1, 2, 4, 5):
        mine = lists == number
        assert positives[number].item() == (gains[mine] > 0).sum()
        if gains[mine].any():
            want = ndcg_score([gains[mine]], [scores[mine]], k=k)
            assert (dcg / ideal)[number].item() == pytest.approx(want, abs=1e-9)
    assert dcg[0].item() == ideal[0].item() == positives[3].item() == 0.0


def test_hits_are_the_mean_over_orders_of_ties() -> None:
    """Brute force over every order of three tied candidates around the cut."""
    scores, gains = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.1]), torch.tensor([1.0, 1, 0, 1, 1])
    hits, _, _, _ = ranking.top_of_lists(scores, gains, torch.zeros(5).long(), 1, k=2)
    assert hits.item() == pytest.approx(1 + 2 / 3)  # one of the three tied is second
