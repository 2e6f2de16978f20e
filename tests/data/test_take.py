# SPDX-License-Identifier: Apache-2.0
"""Taking rows equals Arrow's own take, for every type, nested and null and sliced."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tzgen.data.take import take_rows

COLUMNS = {
    "int": pa.array([1, None, 3, 4, 5, 6]),
    "bool": pa.array([True, None, False, True, True, False]),
    "text": pa.array(["a", "", None, "dd", "e", "f"]),
    "null": pa.nulls(6),
    "list": pa.array([[1], [], None, [2, 3], [4], [5, 6, 7]]),
    "list_int32": pa.array([[1], [], None, [2, 3], [4], [5]], pa.list_(pa.int32())),
    "list_float": pa.array([[1.0], [], None, [2, 3], [4], [5]], pa.list_(pa.float32())),
    "list_hole": pa.array([[1, None], [], None, [2, 3], [4], [5]]),
    "list_text": pa.array([["a"], [], None, ["b", "c"], ["d"], [""]]),
    "list_bool": pa.array([[True], [], None, [False, True], [True], [True]]),
    "list_none": pa.array([[], [], [], [], [], []], pa.list_(pa.int64())),
    "list_list": pa.array([[[1], [2, 3]], [], None, [[]], [[4]], [[5, 6]]]),
    "large_list": pa.array([[1], [], None, [2, 3], [4], [5]], pa.large_list(pa.int64())),
    "fixed_list": pa.array([[1, 2]] * 6, pa.list_(pa.int64(), 2)),
    "time": pa.array([[1], [], None, [2, 3], [4], [5]], pa.list_(pa.timestamp("ms"))),
    "map": pa.array([[("a", 1)], [], None, [("b", 2)], [], []], pa.map_(pa.string(), pa.int64())),
    "dictionary": pa.array(["a", "b", "a", None, "b", "c"]).dictionary_encode(),
    "list_dictionary": pa.ListArray.from_arrays(
        [0, 1, 1, 2, 3, 4, 4], pa.array(["a", "b", "a", "c"]).dictionary_encode()
    ),
    "sliced": pa.array([[9], [1], [], None, [2, 3], [4], [5]]).slice(1),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("wanted", [[0], [5, 0, 3], [1, 2, 3], [3, 2, 1], [0, 0, 5], [2, 4]])
def test_take_is_arrows_take(name: str, wanted: list[int]) -> None:
    rows = pa.RecordBatch.from_arrays([COLUMNS[name]], [name])
    taken = take_rows(rows, np.array(wanted, dtype=np.int64))
    taken.validate(full=True)
    assert taken.equals(rows.take(pa.array(wanted)))
    assert taken.schema == rows.schema
