# SPDX-License-Identifier: Apache-2.0
"""Cold items: few events, none, no row; files that lack a column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tzgen.errors import UserError
from tzgen.sid.cold import cold_items
from tzgen.sid.space import SidSpace
from tzgen.sid.table import make_table

FIELDS = {"item_id_field": "item_id", "count_field": "train_count", "max_count": 5}


def test_items_are_cold_by_their_count(tmp_path: Path) -> None:
    table = make_table(pa.array([9, 3, 7, 5]), np.zeros((4, 1), dtype=np.int64), SidSpace((4,)))
    rows = pa.table({"item_id": [7, 5, 3, 100], "train_count": [6, 5, None, 2]})
    pq.write_table(rows, tmp_path / "items.parquet", row_group_size=2)
    found = cold_items(table, str(tmp_path / "*.parquet"), **FIELDS)
    assert table.item_id.to_pylist() == [3, 5, 7, 9]
    assert found.tolist() == [True, True, False, True]


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    table = make_table(pa.array([1]), np.zeros((1, 1), dtype=np.int64), SidSpace((4,)))
    pq.write_table(pa.table({"item_id": [1], "count": [3]}), tmp_path / "items.parquet")
    with pytest.raises(UserError, match=r"'train_count'.*item_id, count.*count_field"):
        cold_items(table, str(tmp_path), **FIELDS)
