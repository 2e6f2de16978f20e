# SPDX-License-Identifier: Apache-2.0
"""Synthesised columns take the declared type, and read back as the same values."""

from __future__ import annotations

import pyarrow as pa
import pytest

from tzgen.errors import UserError
from tzgen.features.arrow import Layout, read_bags, read_pairs
from tzgen.features.declared import as_declared

INTS = pa.array([3, 1, 2])
LISTS = pa.array([[3, 1], [], [2]])
NESTED = pa.array([[[3, 1], [4]], [], [[2]]])
STEPS = Layout(sequence=True, separator=",", delimiter="|")
BAG = Layout(separator=",")


@pytest.mark.parametrize(
    ("column", "kind", "layout", "expected"),
    [
        (INTS, pa.string(), BAG, ["3", "1", "2"]),
        (INTS, pa.float32(), BAG, [3.0, 1.0, 2.0]),
        (INTS, pa.list_(pa.int32()), BAG, [[3], [1], [2]]),
        (INTS, pa.list_(pa.string()), BAG, [["3"], ["1"], ["2"]]),
        (LISTS, pa.string(), STEPS, ["3|1", "", "2"]),
        (LISTS, pa.string(), BAG, ["3,1", "", "2"]),
        (LISTS, pa.list_(pa.string()), STEPS, [["3", "1"], [], ["2"]]),
        (LISTS, pa.list_(pa.list_(pa.int64())), STEPS, [[[3], [1]], [], [[2]]]),
        (NESTED, pa.string(), STEPS, ["3,1|4", "", "2"]),
        (NESTED, pa.list_(pa.string()), STEPS, [["3,1", "4"], [], ["2"]]),
    ],
)
def test_types(column: pa.Array, kind: pa.DataType, layout: Layout, expected: list[object]) -> None:
    found = as_declared("c", column, kind, layout)
    assert found.type == kind and found.to_pylist() == expected


@pytest.mark.parametrize("kind", [pa.string(), pa.list_(pa.string()), pa.list_(pa.int32())])
def test_sequences_read_back(kind: pa.DataType) -> None:
    bags = read_bags(as_declared("c", LISTS, kind, STEPS), STEPS)
    assert bags.steps is not None and bags.steps.tolist() == [2, 0, 1]
    values = bags.values.tolist() if kind.equals(pa.list_(pa.int32())) else bags.values.to_pylist()
    assert [int(value) for value in values] == [3, 1, 2]


def test_maps_both_ways() -> None:
    kind = pa.map_(pa.string(), pa.float32())
    texts = pa.array(["a:1,b:2.5", "", "c:3"])
    found = as_declared("c", texts, kind, BAG)
    assert found.type == kind
    assert [row for row in found.to_pylist() if row] == [[("a", 1.0), ("b", 2.5)], [("c", 3.0)]]
    back = as_declared("c", found, pa.string(), BAG)
    pairs = read_pairs(back, ",")
    assert pairs.keys.to_pylist() == ["a", "b", "c"] and pairs.lengths.tolist() == [2, 0, 1]
    integers = as_declared("c", found, pa.map_(pa.string(), pa.int64()), BAG)
    assert integers.to_pylist()[0] == [("a", 1), ("b", 2)]


@pytest.mark.parametrize(("column", "kind"), [(LISTS, pa.int64()), (pa.array(["x"]), pa.int64())])
def test_a_declaration_that_cannot_be_is_refused(column: pa.Array, kind: pa.DataType) -> None:
    with pytest.raises(UserError, match="'c': found the declaration int64"):
        as_declared("c", column, kind, BAG)
