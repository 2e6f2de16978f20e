# SPDX-License-Identifier: Apache-2.0
"""Columns as arrays, and what is no array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tzgen.data.readers import ParquetDataset
from tzgen.errors import UserError
from tzgen.sid import rows as rows_module
from tzgen.sid.rows import equal_lists, lists, matrix, read_all


def test_all_row_groups_are_read_in_order(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"a": range(10), "b": range(10)}), tmp_path / "x.parquet", row_group_size=3
    )
    reader = ParquetDataset(str(tmp_path / "x.parquet"))
    rows = read_all(reader, ["a"], optional=["b", "c"])
    assert read_all(reader, ["a"], optional=["a"]).column_names == ["a"]
    assert rows.column_names == ["a", "b"] and rows["a"].to_pylist() == list(range(10))
    with pytest.raises(UserError, match="no column 'c'; it has a, b"):
        read_all(reader, ["c"])


def test_lists_of_more_values_than_int32_counts_are_large() -> None:
    """Values of type null take no memory."""
    many = 2**31 + 5
    found = lists(np.array([0, 3, many]), pa.nulls(many))
    assert pa.types.is_large_list(found.type)
    assert [len(found), found.value_lengths().to_pylist()] == [2, [3, many - 3]]
    found.validate(full=True)
    small = lists(np.array([0, 3, 2**31 - 1]), pa.nulls(2**31 - 1))
    assert pa.types.is_list(small.type)
    assert small.value_lengths().to_pylist() == [3, 2**31 - 4]


def test_lists_of_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(12).reshape(4, 3)
    for limit, kind in ((12, pa.types.is_list), (11, pa.types.is_large_list)):
        monkeypatch.setattr(rows_module, "LARGEST_OFFSET", limit)
        found = equal_lists(values)
        assert kind(found.type) and found.to_pylist() == values.tolist()
        assert np.array_equal(matrix(pa.chunked_array([found]), "x"), values)
    assert pa.types.is_large_list(equal_lists(values, large=True).type)
    assert len(equal_lists(np.zeros((0, 3), np.int64))) == 0


def test_columns_that_are_no_matrix_are_named() -> None:
    def column(values: Any) -> pa.ChunkedArray:
        return pa.chunked_array([pa.array(values)])

    assert matrix(column([[1, 2], [3, 4]]), "c").tolist() == [[1, 2], [3, 4]]
    with pytest.raises(UserError, match="row 1: found 1 numbers; expected 2"):
        matrix(column([[1, 2], [3]]), "c")
    with pytest.raises(UserError, match="row 1: found null"):
        matrix(column([[1, 2], None]), "c")
    with pytest.raises(UserError, match="null inside a list"):
        matrix(column([[1, None]]), "c")
    with pytest.raises(UserError, match="is int64; expected a list"):
        matrix(column([1, 2]), "c")


def test_codes_are_never_rounded_and_texts_are_no_numbers() -> None:
    floats = pa.chunked_array([pa.array([[1.0, 2.7]])])
    with pytest.raises(
        UserError, match="'codes' holds lists of double; expected lists of integers"
    ):
        matrix(floats, "codes")
    assert matrix(floats, "scores", np.float32).dtype == np.float32
    texts = pa.chunked_array([pa.array([["1", "2"]])])
    with pytest.raises(UserError, match="'item_emb' holds lists of string; expected lists of num"):
        matrix(texts, "item_emb", np.float32)
