# SPDX-License-Identifier: Apache-2.0
"""The graph against a loop over pairs; clusters that are planted are found."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np

from tzgen.sid.cooccurrence import build_graph, cluster_codes


def planted(groups: int = 4, size: int = 12, users: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Users who stay within one group of items; item i belongs to group i % groups."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, size, 6) * groups + rng.integers(0, groups) for _ in range(users)]
    return np.concatenate(rows), np.arange(users + 1) * 6


def test_edges_are_the_pairs_of_a_loop() -> None:
    items, offsets = np.array([0, 1, 0, 2, 3, 3, 1]), np.array([0, 4, 4, 7])
    expected: Counter[tuple[int, int]] = Counter()
    for start, stop in pairwise(offsets.tolist()):
        row = items[start:stop].tolist()
        for i, a in enumerate(row):
            for b in row[i + 1 : i + 3]:
                if a != b:
                    expected[a, b] += 1
                    expected[b, a] += 1
    graph = build_graph(items, offsets, 5, window=2)
    found = dict(
        zip(zip(graph.a.tolist(), graph.b.tolist(), strict=True), graph.weight, strict=True)
    )
    assert found == dict(expected)


def test_planted_groups_become_clusters_of_equal_size() -> None:
    items, offsets = planted()
    graph = build_graph(items, offsets, 48, window=5)
    codes = cluster_codes(graph, (4,), np.bincount(items, minlength=48), seed=0)
    groups = np.arange(48) % 4
    for code in range(4):
        assert len(set(groups[codes[:, 0] == code].tolist())) == 1
    assert np.bincount(codes[:, 0]).tolist() == [12] * 4
    assert len(np.unique(codes, axis=0)) == 48


def test_numbers_in_a_leaf_go_by_how_often_an_item_occurs() -> None:
    items, offsets = planted()
    counts = np.bincount(items, minlength=48)
    codes = cluster_codes(build_graph(items, offsets, 48, window=5), (4, 2), counts, seed=0)
    leaf = codes[:, 0] * 2 + codes[:, 1]
    for name in np.unique(leaf):
        members = np.flatnonzero(leaf == name)
        by_number = members[np.argsort(codes[members, 2])]
        assert (np.diff(counts[by_number]) <= 0).all()
        assert sorted(codes[members, 2].tolist()) == list(range(len(members)))


def test_items_nobody_bought_have_codes_of_their_own() -> None:
    items, offsets = planted()
    codes = cluster_codes(
        build_graph(items, offsets, 55, window=5), (5,), np.bincount(items, minlength=55), seed=0
    )
    assert set(codes[48:, 0].tolist()).isdisjoint(codes[:48, 0].tolist())
    assert len(np.unique(codes, axis=0)) == 55


def test_a_catalogue_without_pairs_is_numbered() -> None:
    graph = build_graph(np.array([0, 1, 2]), np.array([0, 1, 2, 3]), 4, window=3)
    codes = cluster_codes(graph, (3,), np.array([1, 1, 1, 0]), seed=0)
    assert codes.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]


def test_the_same_seed_gives_the_same_codes() -> None:
    items, offsets = planted(size=20)
    graph = build_graph(items, offsets, 80, window=3)
    counts = np.bincount(items, minlength=80)
    first, again = (cluster_codes(graph, (3, 3), counts, seed=5) for _ in range(2))
    assert np.array_equal(first, again)
