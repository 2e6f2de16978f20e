# SPDX-License-Identifier: Apache-2.0
"""Every accepted column type says the same; missing values; truncation; what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tzgen.features.arrow import Layout, read_bags, read_pairs
from tzgen.features.bags import BadValue, Bags, integers, numbers

NULLS = [[1, 2], [], None, [3, None, 4]]
WANTED = [[1, 2], [], [], [3, 4]]


def lists(bags: Bags) -> list[list[Any]]:
    """The values of each bag, as Python numbers or strings."""
    values = (
        bags.values.tolist() if isinstance(bags.values, np.ndarray) else bags.values.to_pylist()
    )
    ends = np.cumsum(bags.all_lengths())
    starts = ends - bags.all_lengths()
    return [values[a:b] for a, b in zip(starts, ends, strict=True)]


MULTI_VALUED = [
    pa.array(NULLS, pa.list_(pa.int64())),
    pa.array(NULLS, pa.list_(pa.int32())),
    pa.array(NULLS, pa.large_list(pa.uint16())),
    pa.array(NULLS, pa.list_(pa.float64())),
    pa.array([["1", "2"], [], None, ["3", "", "4"]], pa.list_(pa.string())),
    pa.array([["1", "2"], [], None, ["3", None, "4"]], pa.large_list(pa.large_string())),
    pa.array(["1|2", "", None, "3||4"]),
    pa.array(["1|2", "", None, "3||4"], pa.large_string()),
    pa.array(["1|2", "", None, "3||4"]).dictionary_encode(),
    pa.array(["1|2", "", None, "3||4"], pa.string_view()),
    pa.array([b"1|2", b"", None, b"3||4"], pa.binary()),
    pa.array([[1, 2], [None, None], None, [3, 4]], pa.list_(pa.int64(), 2)),
]


@pytest.mark.parametrize("column", MULTI_VALUED, ids=lambda column: str(column.type))
def test_several_values_a_row(column: pa.Array) -> None:
    bags = integers(read_bags(column, Layout(separator="|")))
    assert lists(bags) == WANTED


@pytest.mark.parametrize("column", MULTI_VALUED, ids=lambda column: str(column.type))
def test_slices_read_their_own_rows(column: pa.Array) -> None:
    bags = integers(read_bags(column.slice(1, 3), Layout(separator="|")))
    assert lists(bags) == WANTED[1:]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([7, None, 9], pa.int8()),
        pa.array([7, None, 9], pa.uint64()),
        pa.array([7.0, np.nan, 9.0], pa.float32()),
        pa.array([7.0, None, 9.0], pa.float16()),
        pa.array([7, None, 9], pa.decimal128(5, 0)),
        pa.array(["7", None, "9"]),
        pa.array(["7", "", "9"]).dictionary_encode(),
        pa.DictionaryArray.from_arrays(pa.array([0, None, 1], pa.int8()), pa.array([7, 9])),
    ],
    ids=lambda column: str(column.type),
)
def test_one_value_a_row(column: pa.Array) -> None:
    assert lists(integers(read_bags(column, Layout()))) == [[7], [], [9]]


def test_runs_booleans_and_nothing_but_nulls() -> None:
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array([5, 6]))
    assert lists(read_bags(runs, Layout())) == [[5], [5], [6]]
    assert lists(read_bags(pa.array([True, None, False]), Layout())) == [[1], [], [0]]
    assert lists(read_bags(pa.nulls(2), Layout())) == [[], []]


def test_a_large_dictionary_is_not_kept() -> None:
    words = pa.array([f"w{i}" for i in range(50)])
    column = pa.DictionaryArray.from_arrays(pa.array([3, 1], pa.int32()), words)
    assert lists(read_bags(column, Layout())) == [["w3"], ["w1"]]


STEPS = [[10, 20, 30], [], [], [40]]
SEQUENCES = [
    pa.array([[10, 20, 30], [], None, [40]], pa.list_(pa.int64())),
    pa.array([[10, 20, 30], [], None, [40]], pa.large_list(pa.int32())),
    pa.array(["10;20;30", "", None, "40"]),
    pa.array(["10;20;30", "", None, "40"]).dictionary_encode(),
    pa.array([["10", "20", "30"], [], None, ["40"]]),
    pa.array([[[10], [20], [30]], [], None, [[40]]]),
]


@pytest.mark.parametrize("column", SEQUENCES, ids=lambda column: str(column.type))
def test_sequences(column: pa.Array) -> None:
    bags = integers(read_bags(column, Layout(sequence=True)))
    assert bags.steps is not None and bags.steps.tolist() == [3, 0, 0, 1]
    assert lists(bags) == [[10], [20], [30], [40]]


@pytest.mark.parametrize("column", SEQUENCES, ids=lambda column: str(column.type))
def test_the_newest_steps_are_kept(column: pa.Array) -> None:
    bags = integers(read_bags(column, Layout(sequence=True, limit=2)))
    assert lists(bags) == [[20], [30], [40]]
    assert bags.steps is not None and bags.steps.tolist() == [2, 0, 0, 1]
    assert bags.cut == 1
    newest_first = Layout(sequence=True, limit=2, newest_first=True)
    assert lists(integers(read_bags(column, newest_first))) == [[10], [20], [40]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["1|2;;3", None, "4"]),
        pa.array([["1|2", "", "3"], [], ["4"]]),
        pa.array([[[1, 2], [], [3]], None, [[4]]]),
        pa.array([[[1, None, 2], None, [3]], None, [[4]]]),
    ],
    ids=lambda column: str(column.type),
)
def test_steps_of_several_values(column: pa.Array) -> None:
    bags = integers(read_bags(column, Layout(sequence=True, separator="|")))
    assert bags.steps is not None and bags.steps.tolist() == [3, 0, 1]
    assert lists(bags) == [[1, 2], [], [3], [4]]


def test_a_number_is_a_sequence_of_one() -> None:
    bags = read_bags(pa.array([5, None, 6]), Layout(sequence=True))
    assert bags.steps is not None and bags.steps.tolist() == [1, 0, 1]


def test_embeddings_as_steps() -> None:
    column = pa.array([[[1.0, 2.0], [3.0, 4.0]], []], pa.list_(pa.list_(pa.float32(), 2)))
    bags = read_bags(column, Layout(sequence=True))
    assert lists(bags) == [[1.0, 2.0], [3.0, 4.0]] and bags.values.dtype == np.float32


WEIGHTED = [
    pa.array([{1: 0.5, 2: 1.5}, {}, None, {3: 2.0}], pa.map_(pa.int64(), pa.float32())),
    pa.array([{"1": 0.5, "2": 1.5}, {}, None, {"3": 2.0}], pa.map_(pa.string(), pa.float64())),
    pa.array(["1:0.5|2:1.5", "", None, "3:2"]),
    pa.array([["1:0.5", "2:1.5"], [], None, ["3:2"]]),
]


@pytest.mark.parametrize("column", WEIGHTED, ids=lambda column: str(column.type))
@pytest.mark.parametrize("start", [0, 1])
def test_weighted_ids(column: pa.Array, start: int) -> None:
    bags = integers(read_bags(column.slice(start), Layout(separator="|", weighted=True)))
    assert lists(bags) == [[1, 2], [], [], [3]][start:]
    assert bags.weights is not None and bags.weights.dtype == np.float32
    assert bags.weights.tolist() == [0.5, 1.5, 2.0][2 * start :]


def test_ids_may_have_colons_before_the_weight() -> None:
    bags = read_bags(pa.array(["a:b:0.5"]), Layout(weighted=True))
    assert lists(bags) == [["a:b"]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["k:1|l:2,3", None, ""]),
        pa.array([["k:1", "l:2,3"], None, []]),
        pa.array([{"k": "1", "l": "2,3"}, None, {}], pa.map_(pa.string(), pa.string())),
        pa.array([{"k": "1", "x": None, "l": "2,3"}, None, {}], pa.map_(pa.string(), pa.string())),
    ],
    ids=lambda column: str(column.type),
)
def test_maps(column: pa.Array) -> None:
    pairs = read_pairs(column, "|")
    assert pairs.keys.to_pylist() == ["k", "l"] and pairs.items.to_pylist() == ["1", "2,3"]
    assert pairs.lengths.tolist() == [2, 0, 0]


@pytest.mark.parametrize(
    ("column", "layout", "found"),
    [
        (pa.array([1, 2], pa.timestamp("s")), Layout(), "timestamp"),
        (pa.array([{"a": 1}]), Layout(), "struct"),
        (pa.array([[[1]], [[2]]]), Layout(), "inside one row"),
        (pa.array([{1: 2}], pa.map_(pa.int8(), pa.int8())), Layout(sequence=True), "map"),
        (pa.array(["ab"]), Layout(weighted=True), "'ab'"),
        (pa.array([5]), Layout(weighted=True), "numbers"),
        (pa.array(["a:x"]), Layout(weighted=True), "x"),
    ],
)
def test_refusals(column: pa.Array, layout: Layout, found: str) -> None:
    with pytest.raises(BadValue, match=found):
        read_bags(column, layout)


def test_the_row_of_a_text_that_is_no_number() -> None:
    bags = read_bags(pa.array(["1;2", "3", "4;x"]), Layout(sequence=True))
    with pytest.raises(BadValue, match="'x'") as caught:
        integers(bags)
    assert caught.value.row == 2
    with pytest.raises(BadValue, match="'x'"):
        numbers(bags)


def test_the_row_of_an_id_that_is_not_whole() -> None:
    with pytest.raises(BadValue, match=r"2\.5") as caught:
        integers(read_bags(pa.array([1.0, None, 2.5]), Layout()))
    assert caught.value.row == 2
