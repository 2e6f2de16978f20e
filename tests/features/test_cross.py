# SPDX-License-Identifier: Apache-2.0
"""Combinations and look-ups against Python loops over dictionaries."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pyarrow as pa
import pytest

from tzgen.errors import DataError
from tzgen.features.bags import Bags
from tzgen.features.cross import Combination, ItemForm, Match, read_nested

from .feature_world import bags, one, parse

SEP = "\x1d"


def combined(lists: list[list[list[str]]]) -> list[list[str]]:
    combination = Combination()(
        [
            Bags(
                pa.array([v for bag in one for v in bag], pa.string()),
                np.array(list(map(len, one))),
            )
            for one in lists
        ]
    )
    values = combination.values.to_pylist()
    ends = np.cumsum(combination.all_lengths())
    return [values[b - n : b] for b, n in zip(ends, combination.all_lengths(), strict=True)]


def test_combinations_against_itertools() -> None:
    rng = random.Random(0)
    for inputs in (1, 2, 3):
        lists = [
            [[f"{k}{rng.randrange(9)}" for _ in range(rng.randrange(4))] for _ in range(30)]
            for k in range(inputs)
        ]
        wanted = [
            ["_".join(c) for c in itertools.product(*row)] for row in zip(*lists, strict=True)
        ]
        assert combined(lists) == wanted


def test_combo_feature_through_a_vocabulary() -> None:
    fields = """expression: ["user:u", "item:i"] embedding_dim: 4
      vocab_list: ["ua_ia", "ua_ib", "ub_ia"]"""
    columns = {
        "u": ["ua\x1dub", "ua\x1dub", "ua", "ua", None, ""],
        "i": ["ia\x1dib", "", "ia\x1dib", None, "ia", ""],
    }
    found = bags(parse(one("combo_feature", fields), columns).ids["f"])
    assert found == [[2, 3, 4, 1], [], [2, 3], [], [], []]
    found = bags(parse(one("combo_feature", fields + ' default_value: "q"'), columns).ids["f"])
    assert found == [[2, 3, 4, 1], [0], [2, 3], [0], [0], [0]]


def test_combination_of_a_user_with_the_steps_of_a_sequence() -> None:
    fields = """expression: ["user:u", "item:i"] embedding_dim: 4 value_dim: 0
      vocab_list: ["a_x", "a_y", "b_x"]"""
    columns = {"u": ["a", "b", "a", None], "i": [["x", "y"], ["x", "z"], [], ["x"]]}
    ids = parse(one("sequence_combo_feature", fields), columns).ids["f"]
    assert bags(ids) == [[2], [3], [4], [1], []]
    assert ids.seq_lengths is not None and ids.seq_lengths.tolist() == [2, 2, 0, 1]


MAPS = ["ca:1\x1dcb:2"] * 5 + ["", None]
KEYS = ["ca\x1dcb", "ca", "ca\x1dcd", "cd", "", "ca", None]
LOOKUP = 'map: "user:m" key: "item:k"'


@pytest.mark.parametrize(
    "maps",
    [
        pa.array(MAPS),
        pa.array([m.split(SEP) if m else None for m in MAPS]),
        pa.array(
            [dict(p.split(":") for p in m.split(SEP)) if m else None for m in MAPS],
            pa.map_(pa.string(), pa.string()),
        ),
        pa.array([{"ca": 1, "cb": 2}] * 5 + [{}, None], pa.map_(pa.string(), pa.int64())),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize(
    ("combiner", "wanted"),
    [
        ("sum", [3, 1, 1, 0, 0, 0, 0]),
        ("mean", [1.5, 1, 1, 0, 0, 0, 0]),
        ("min", [1, 1, 1, 0, 0, 0, 0]),
        ("max", [2, 1, 1, 0, 0, 0, 0]),
        ("count", [2, 1, 1, 0, 0, 0, 0]),
    ],
)
def test_lookup_of_numbers(maps: pa.Array, combiner: str, wanted: list[float]) -> None:
    text = one("lookup_feature", f'{LOOKUP} combiner: "{combiner}"')
    found = parse(text, {"m": maps, "k": KEYS}).dense["f"]
    assert found.tolist() == [[x] for x in wanted]


def test_lookup_by_integer_keys() -> None:
    maps = pa.array([{1: 5.0}, {2: 6.0, 1: 7.0}], pa.map_(pa.int32(), pa.float32()))
    found = parse(one("lookup_feature", LOOKUP), {"m": maps, "k": [1, 1]}).dense["f"]
    assert found.tolist() == [[5.0], [7.0]]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ("boundaries: [-0.5, 0.5, 1.5, 2.5]", [[4], [2], [2], [1], [1], [1], [1]]),
        (
            'boundaries: [-0.5, 0.5, 1.5, 2.5] combiner: ""',
            [[2, 3], [2], [2], [1], [1], [1], [1]],
        ),
        ('num_buckets: 10 default_value: ""', [[1, 2], [1], [1], [], [], [], []]),
        ("num_buckets: 10", [[1, 2], [1], [1], [0], [0], [0], [0]]),
        ('vocab_list: ["2"] default_value: "d"', [[1, 2], [1], [1], [0], [0], [0], [0]]),
        (
            'vocab_list: ["ca_1"] need_key: true default_value: ""',
            [[2, 1], [2], [2], [], [], [], []],
        ),
        ('num_buckets: 10 value_dim: 1 default_value: ""', [[1], [1], [1], [], [], [], []]),
    ],
)
def test_lookup_of_ids(fields: str, wanted: list[list[int]]) -> None:
    text = one("lookup_feature", f"{LOOKUP} embedding_dim: 4 {fields}")
    assert bags(parse(text, {"m": MAPS, "k": KEYS}).ids["f"]) == wanted


def test_lookup_of_several_numbers_each() -> None:
    columns = {"m": ["ca:1,2\x1dcb:3,4", "", "ca:5,6"], "k": ["cb", "ca", None]}
    found = parse(one("lookup_feature", f"{LOOKUP} value_dim: 2"), columns).dense["f"]
    assert found.tolist() == [[3, 4], [0, 0], [0, 0]]


def test_lookup_of_the_steps_of_a_sequence() -> None:
    columns = {"m": MAPS[:4], "k": ["ca\x1dcb;ca", "ca", "", "cd;cb"]}
    found = parse(one("sequence_lookup_feature", f'{LOOKUP} combiner: "sum"'), columns).dense["f"]
    assert found.values.tolist() == [[3], [1], [1], [0], [2]]
    assert found.lengths.tolist() == [2, 1, 0, 2]


def test_lookup_normalises_what_it_found() -> None:
    fields = f'{LOOKUP} normalizer: "method=minmax,min=0,max=4" default_value: "9"'
    found = parse(one("lookup_feature", fields), {"m": MAPS[:4], "k": KEYS[:4]}).dense["f"]
    assert found.tolist() == [[0.75], [0.25], [0.25], [9.0]]


NESTED = "ca^ba:1,bb:2|cb^ba:3,bb:4"
MATCH = 'nested_map: "user:n" pkey: "item:p" skey: "item:s"'


def test_match_of_numbers() -> None:
    columns = {
        "n": [NESTED, NESTED, NESTED, "", None, NESTED],
        "p": ["ca", "ca", "", "ca", None, "cb"],
        "s": ["ba", "", "", "ba", None, "bb\x1dba"],
    }
    found = parse(one("match_feature", MATCH), columns).dense["f"]
    assert found.tolist() == [[1], [0], [0], [0], [0], [7]]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ("num_buckets: 10", [[1], [0], [4]]),
        ('num_buckets: 10 default_value: ""', [[1], [], [4]]),
        ("boundaries: [-0.5, 0.5, 1.5, 2.5]", [[2], [1], [4]]),
        ('vocab_list: ["1", "4"] default_value: "d"', [[2], [0], [3]]),
        (
            'vocab_list: ["ca_ba_1"] show_pkey: true show_skey: true default_value: "d"',
            [[2], [0], [1]],
        ),
    ],
)
def test_match_of_ids(fields: str, wanted: list[list[int]]) -> None:
    columns = {"n": [NESTED] * 3, "p": ["ca", "cx", "cb"], "s": ["ba", "ba", "bb"]}
    text = one("match_feature", f"{MATCH} embedding_dim: 4 {fields}")
    assert bags(parse(text, columns).ids["f"]) == wanted


def test_match_against_loops_with_wildcards() -> None:
    rng = random.Random(1)
    nested = [
        {f"p{p}": {f"s{s}": rng.randrange(100) for s in rng.sample(range(4), 2)} for p in range(3)}
        for _ in range(20)
    ]
    texts = [
        "|".join(
            f"{p}^" + ",".join(f"{s}:{v}" for s, v in inner.items()) for p, inner in row.items()
        )
        for row in nested
    ]
    outer = [[f"p{rng.randrange(4)}" for _ in range(rng.randrange(3))] for _ in nested]
    inner = [[f"s{rng.randrange(4)}" for _ in range(rng.randrange(3))] for _ in nested]
    form = ItemForm(True, "", 1, "", None)
    entries = read_nested(pa.array(texts))

    def keys(lists: list[list[str]]) -> Bags:
        flat = pa.array([k for one in lists for k in one], pa.string())
        return Bags(flat, np.array(list(map(len, lists))))

    for has_outer, has_inner in itertools.product([True, False], repeat=2):
        given = [keys(outer)] * has_outer + [keys(inner)] * has_inner
        match = Match(form, has_outer, has_inner, False, False)
        found = match([entries, *given])
        values, ends = found.values.to_pylist(), np.cumsum(found.all_lengths())
        for row, (end, count) in enumerate(zip(ends, found.all_lengths(), strict=True)):
            wanted = [
                str(nested[row][p][s])
                for p in (outer[row] if has_outer else nested[row])
                for s in (inner[row] if has_inner else nested[row].get(p, {}))
                if s in nested[row].get(p, {})
            ]
            assert sorted(values[end - count : end]) == sorted(wanted)


def test_a_broken_nested_map_is_named() -> None:
    with pytest.raises(DataError, match="'ca'"):
        parse(one("match_feature", MATCH), {"n": ["ca"], "p": ["a"], "s": ["b"]})
    with pytest.raises(DataError, match=r"row 101.*'k'"):
        parse(one("lookup_feature", LOOKUP), {"m": ["a:1", "k"], "k": ["a", "a"]})
