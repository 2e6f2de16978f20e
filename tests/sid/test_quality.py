# SPDX-License-Identifier: Apache-2.0
"""Quality figures against counters and brute force."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from tzgen.sid.quality import largest_groups, measure, nearest_items, neighbour_share
from tzgen.sid.space import SidSpace
from tzgen.sid.table import make_table

SPACE = SidSpace((4, 6))


def codes(n: int = 60, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, 3, n), rng.integers(0, 6, n)], axis=1)


def test_counts_and_entropies() -> None:
    found = measure(codes(), SPACE)
    groups = Counter(map(tuple, codes().tolist()))
    assert (found.items, found.distinct) == (60, len(groups))
    assert found.unique_ratio == len(groups) / 60
    assert found.items_alone == sum(n == 1 for n in groups.values())
    assert found.largest_group == max(groups.values())
    share = np.array(list(Counter(codes()[:, 0].tolist()).values())) / 60
    assert found.levels[0].perplexity == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert (found.levels[0].size, found.levels[0].used) == (4, 3)
    both = np.array(list(groups.values())) / 60
    assert found.prefixes[1].entropy == pytest.approx(-(both * np.log2(both)).sum())
    assert found.prefixes[1].distinct == found.distinct
    assert found.as_json()["levels"][1]["size"] == 6


def test_neighbours_share_prefixes_where_codes_follow_vectors() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 4, 300)
    vectors = (np.eye(4)[group] * 5 + rng.normal(size=(300, 4)) * 0.1).astype(np.float32)
    good = make_table(pa.array(range(300)), np.stack([group, rng.integers(0, 6, 300)], 1), SPACE)
    found = neighbour_share(good, vectors)
    assert found.share[0] > 0.99 and found.chance[0] == pytest.approx(0.25, abs=0.05)
    assert found.share[1] == pytest.approx(found.chance[1] / found.chance[0], abs=0.05)
    random = make_table(pa.array(range(300)), codes(300, seed=7), SPACE)
    found = neighbour_share(random, vectors)
    assert found.share[0] == pytest.approx(found.chance[0], abs=0.05)


def test_nearest_items_are_brute_force() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = nearest_items(vectors, np.array([3, 7]), 5)
    for row, item in enumerate((3, 7)):
        scores = unit @ unit[item]
        scores[item] = -2
        assert set(near[row].tolist()) == set(np.argsort(-scores)[:5].tolist())


def test_largest_groups_come_first_and_singles_not_at_all() -> None:
    rows = np.array([[0, 1], [2, 2], [0, 1], [3, 3], [0, 1], [2, 2]])
    groups = largest_groups(rows, SPACE, 10)
    assert [sorted(group.tolist()) for group in groups] == [[0, 2, 4], [1, 5]]
    assert len(largest_groups(rows, SPACE, 1)) == 1


def test_one_item_has_no_neighbours() -> None:
    one = make_table(pa.array([1]), np.array([[0, 0]]), SPACE)
    assert neighbour_share(one, np.ones((1, 2), np.float32)).share == ()
    assert measure(one.codes, SPACE).unique_ratio == 1.0
