# SPDX-License-Identifier: Apache-2.0
"""Small Parquet and CSV data in which every row says which it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sample_rows import table


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., str]:
    """write(rows of each file, row_group_size) -> the folder; file f<k>.parquet."""

    def write(rows: Sequence[int] = (100, 37, 64), row_group_size: int = 16) -> str:
        folder, first = tmp_path / "rows", 0
        folder.mkdir(exist_ok=True)
        for k, count in enumerate(rows):
            pq.write_table(
                table(first, count), folder / f"f{k}.parquet", row_group_size=row_group_size
            )
            first += count
        return str(folder)

    return write
