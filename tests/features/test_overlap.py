# SPDX-License-Identifier: Apache-2.0
"""Every method against loops over two lists of terms."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from tzgen.errors import ConfigError
from tzgen.features.bags import Bags
from tzgen.features.overlap import METHODS, Overlap

from .feature_world import bags, one, parse

Terms = list[str]


def index_of(q: Terms, t: Terms) -> float:
    places = [i for i in range(len(t) - len(q) + 1) if q and t[i : i + len(q)] == q]
    return float(places[0]) if places else -1.0


def min_cover(q: Terms, t: Terms) -> float:
    if not q or not set(q) <= set(t):
        return 0.0
    spans = itertools.combinations(range(len(t) + 1), 2)
    return float(min(b - a for a, b in spans if set(q) <= set(t[a:b])))


def distances(q: Terms, t: Terms) -> list[int]:
    found = []
    for a, b in itertools.combinations(sorted(set(q) & set(t)), 2):
        gaps = [abs(i - j) for i, x in enumerate(t) for j, y in enumerate(t) if (x, y) == (a, b)]
        found.append(min(gaps))
    return found


def proximity(combine: Callable[[list[int]], float]) -> Callable[[Terms, Terms], float]:
    def compute(q: Terms, t: Terms) -> float:
        found = distances(q, t)
        return float(combine(found)) if found else len(t) + 1.0

    return compute


LOOPS: dict[str, Callable[[Terms, Terms], float]] = {
    "query_common_ratio": lambda q, t: sum(x in t for x in q) / max(len(q), 1),
    "title_common_ratio": lambda q, t: sum(x in q for x in t) / max(len(t), 1),
    "is_contain": lambda q, t: float(index_of(q, t) >= 0),
    "is_equal": lambda q, t: float(bool(q) and q == t),
    "index_of": index_of,
    "proximity_min_cover": min_cover,
    "proximity_min_dist": proximity(min),
    "proximity_max_dist": proximity(max),
    "proximity_avg_dist": proximity(lambda gaps: sum(gaps) / len(gaps)),
}


def as_bags(lists: list[Terms]) -> Bags:
    flat = pa.array([x for one in lists for x in one], pa.string())
    return Bags(flat, np.array(list(map(len, lists))))


@pytest.mark.parametrize("method", METHODS)
def test_against_loops(method: str) -> None:
    rng = random.Random(5)
    queries = [[rng.choice("abcd") for _ in range(rng.randrange(4))] for _ in range(200)]
    titles = [[rng.choice("abcde") for _ in range(rng.randrange(7))] for _ in range(200)]
    queries += [["b", "c"], titles[0], [], ["a"]]
    titles += [["a", "b", "c", "d"], titles[0], [], []]
    found = Overlap(method, None)([as_bags(queries), as_bags(titles)])
    wanted = [LOOPS[method](q, t) for q, t in zip(queries, titles, strict=True)]
    np.testing.assert_allclose(found.values, wanted)


def test_with_boundaries_and_as_a_sequence() -> None:
    fields = 'query: "user:q" title: "item:t" method: "query_common_ratio"'
    text = one("overlap_feature", f"{fields} embedding_dim: 4 boundaries: [0.25, 0.75]")
    columns = {"q": ["abc\x1defg", "abc\x1defg", None], "t": ["abc\x1dqwe", "efg\x1dabc", "x"]}
    assert bags(parse(text, columns).ids["f"]) == [[1], [2], [0]]
    columns = {"q": ["abc\x1defg", "abc"], "t": ["abc\x1drty;abc\x1defg", "qwe"]}
    found = parse(one("sequence_overlap_feature", fields), columns).dense["f"]
    assert found.values.tolist() == [[0.5], [1.0], [0.0]] and found.lengths.tolist() == [2, 1]


def test_an_unknown_method_is_named() -> None:
    fields = 'query: "user:q" title: "item:t" method: "is_common"'
    with pytest.raises(ConfigError, match=r"is_common.*query_common_ratio"):
        parse(one("overlap_feature", fields), {"q": ["a"], "t": ["a"]})
