# SPDX-License-Identifier: Apache-2.0
"""Every prefix of a sequence as a sample, against a plain loop; what does not fit is named."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tzgen.data.batch import Batch, Source
from tzgen.data.windows import SlidingWindow, WindowParse, windows
from tzgen.errors import DataError, UserError
from tzgen.protos.data_pb2 import SlidingWindow as Message

PAIRS = (("uih__item", "target__item"), ("uih__time", "target_time"))


def table(rows: int = 9, seed: int = 0, kind: Any = pa.list_) -> pa.RecordBatch:
    """Histories of 0 to 12 items, targets of 0 or 1; times beside, scalar for the target."""
    rng = np.random.default_rng(seed)
    sizes = [0, 1, *rng.integers(0, 13, rows - 2).tolist()]
    there = [1, 0, *rng.integers(0, 2, rows - 2).tolist()]
    items = [rng.integers(0, 99, n).tolist() for n in sizes]
    nexts = [rng.integers(0, 99, n).tolist() for n in there]
    return pa.record_batch(
        {
            "user": pa.array([f"u{i}" for i in range(rows)]),
            "uih__item": pa.array(items, kind(pa.int64())),
            "target__item": pa.array(nexts, kind(pa.int64())),
            "uih__time": pa.array([[10 * x for x in row] for row in items], kind(pa.int64())),
            "target_time": pa.array([10 * x[0] if x else None for x in nexts], pa.int64()),
        }
    )


def source(rows: int) -> Source:
    index = torch.arange(rows)
    return Source(("a.parquet", "b.parquet"), index % 2, 100 + index)


def plain(rows: pa.RecordBatch, most: int, least: int) -> list[dict[str, Any]]:
    found = []
    for number, row in enumerate(rows.to_pylist()):
        items = row["uih__item"] + row["target__item"]
        for place in range(least, len(items)):
            history = items[:place][-most:]
            found.append(
                {
                    "user": row["user"],
                    "uih__item": history,
                    "target__item": [items[place]],
                    "uih__time": [10 * x for x in history],
                    "target_time": 10 * items[place],
                    "row": number,
                }
            )
    return found


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
@pytest.mark.parametrize(("most", "least"), [(20, 1), (3, 0), (1, 1), (4, 3)])
def test_samples_are_those_of_a_loop(kind: Any, most: int, least: int) -> None:
    rows = table(kind=kind)
    found, row = windows(rows, SlidingWindow(PAIRS, most, least), source(9))
    assert found.schema.equals(rows.schema)
    named = [{**sample, "row": int(r)} for sample, r in zip(found.to_pylist(), row, strict=True)]
    assert named == plain(rows, most, least) and len(named) > 5


def test_slices_of_a_batch_are_themselves() -> None:
    rows = table().slice(3, 4)
    found, _ = windows(rows, SlidingWindow(PAIRS, 5, 1), source(4))
    whole = [{k: v for k, v in row.items() if k != "row"} for row in plain(rows, 5, 1)]
    assert found.to_pylist() == whole


def test_rows_without_a_sample_and_no_rows() -> None:
    for rows in (table().slice(0, 2), table().slice(0, 0)):
        found, row = windows(rows, SlidingWindow(PAIRS, 5, 2), source(rows.num_rows))
        assert found.num_rows == len(row) == 0 and found.schema.equals(rows.schema)


def parsed(rows: pa.RecordBatch, place: Source) -> Batch:
    return Batch(num_rows=rows.num_rows, source=place)


def test_samples_know_where_their_row_lies() -> None:
    parse = pickle.loads(pickle.dumps(WindowParse(parsed, SlidingWindow(PAIRS, 5, 1))))
    batch = parse(table(), source(9))
    expected = [100 + sample["row"] for sample in plain(table(), 5, 1)]
    assert batch.source.row.tolist() == expected and batch.num_rows == len(expected)
    assert batch.source.file_index.tolist() == [row % 2 for row in expected]


def test_columns_of_other_lengths_are_named_by_row() -> None:
    rows = table()
    times = rows["uih__time"].to_pylist()
    times[4] = [*times[4], 1]
    index = rows.schema.get_field_index("uih__time")
    rows = rows.set_column(index, "uih__time", pa.array(times))
    with pytest.raises(DataError, match=r"a\.parquet, row 104, column 'uih__time'"):
        windows(rows, SlidingWindow(PAIRS, 5, 1), source(9))


def test_texts_are_refused() -> None:
    rows = pa.record_batch({"h": ["1|2"], "t": [3]})
    with pytest.raises(DataError, match="store the sequence as a list"):
        windows(rows, SlidingWindow((("h", "t"),), 5, 1), source(1))


def test_columns_that_nobody_reads_are_named() -> None:
    message = Message(history=["uih__item"], target=["target__item"], max_items=7)
    window = SlidingWindow.of(message, ["uih__item", "target__item"])
    assert window == SlidingWindow((("uih__item", "target__item"),), 7, 1)
    with pytest.raises(UserError, match="'target__item', which no feature reads"):
        SlidingWindow.of(message, ["uih__item"])
