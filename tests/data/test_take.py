# SPDX-License-Identifier: Apache-2.0
"""Taking rows equals Arrow's own take, for every type, nested and null and sliced."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tzgen.data import take
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
    "list_large_text": pa.array(
        [["a"], [], None, ["b", ""], ["d"], ["é"]], pa.list_(pa.large_string())
    ),
    "list_binary": pa.array([[b"a"], [], None, [b"b", b""], [b"d"], [b"ee"]]),
    "list_text_hole": pa.array([["a", None], [], None, ["b"], ["d"], [""]]),
    "list_texts_empty": pa.array([[""], [], None, ["", ""], [""], []]),
    "list_list_float": pa.array(
        [[[1.0, 2], [3, 4]], [], None, [[5, 6]], [[7, 8]], [[0, 0]]],
        pa.list_(pa.list_(pa.float32())),
    ),
    "list_list_hole": pa.array([[[1], None], [], None, [[None]], [[4]], [[5, 6]]]),
    "list_large_list": pa.array(
        [[[1], [2, 3]], [], None, [[]], [[4]], [[5]]], pa.list_(pa.large_list(pa.int64()))
    ),
    "list_list_list": pa.array([[[[1]]], [], None, [[[2], []]], [[]], [[[3]]]]),
    "list_fixed": pa.array(
        [[[1, 2]], [], None, [[3, 4]], [], []], pa.list_(pa.list_(pa.int64(), 2))
    ),
    "list_struct": pa.array([[{"a": 1}], [], None, [{"a": 2}], [], []]),
    "hidden": pa.ListArray.from_arrays(
        pa.array([0, 2, 2, 3, 4, 5, 5], pa.int32()),
        pa.array([1, 2, 3, 4, 5]),
        mask=pa.array([False, False, True, False, False, False]),
    ),
    "hidden_inside": pa.ListArray.from_arrays(
        pa.array([0, 1, 2, 2, 3, 3, 3], pa.int32()),
        pa.array([[1, 2], [3], [4]]),
        mask=pa.array([False, True, False, False, False, False]),
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


FAST = {
    "list",
    "list_int32",
    "list_float",
    "time",
    "list_text",
    "list_large_text",
    "list_binary",
    "list_list",
    "list_list_float",
    "list_large_list",
    "hidden",
    "hidden_inside",
}


@pytest.mark.parametrize("name", COLUMNS)
def test_lists_take_the_fast_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is Arrow's; that the fast way is taken at all would not show in the values."""
    cells = []
    fast = take._take_cells
    monkeypatch.setattr(take, "_take_cells", lambda *given: cells.append(1) or fast(*given))
    take_rows(pa.RecordBatch.from_arrays([COLUMNS[name]], [name]), np.array([3, 0, 2]))
    assert bool(cells) == (name in FAST | {"list_texts_empty"})


@pytest.mark.parametrize("inner", [pa.list_(pa.int64()), pa.large_list(pa.float32()), pa.string()])
@pytest.mark.parametrize("lengths", [[2] * 9, [2] * 8 + [3], [1] * 9, [0] * 9])
def test_lists_of_equal_and_nearly_equal_lists(inner: pa.DataType, lengths: list[int]) -> None:
    texts = inner == pa.string()
    cells = ["x" * n if texts else list(range(n)) for n in lengths]
    column = pa.array([cells[:4], [], cells[4:5], None, cells[5:]], pa.list_(inner))
    rows = pa.RecordBatch.from_arrays([column], ["column"])
    for wanted in ([4, 0], [1, 3], [3, 4, 1, 2, 0, 0]):
        taken = take_rows(rows, np.array(wanted))
        taken.validate(full=True)
        assert taken.equals(rows.take(pa.array(wanted)))
