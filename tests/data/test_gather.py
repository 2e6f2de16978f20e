# SPDX-License-Identifier: Apache-2.0
"""Rows brought into batch order equal the plain, slow way; taking equals Arrow's own take."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from tzgen.data.gather import RankRows, take_rows
from tzgen.data.order import RowOrder
from tzgen.data.plan import SplitByRows, bounds_by_rows
from tzgen.data.readers import ParquetDataset
from tzgen.data.readers.base import RowGroups

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


@pytest.mark.parametrize("window", [None, 1, 2, 5, 99])
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("batch", [1, 7, 16, 50, 500])
@pytest.mark.parametrize("start", [0, 45])
def test_each_rank_gets_its_slice_of_each_batch(
    parquet: Callable[..., str], window: int | None, world_size: int, batch: int, start: int
) -> None:
    reader = ParquetDataset(parquet())
    groups = RowGroups(reader.files)
    order = RowOrder(groups.rows, key="k", seed=0, epoch=0, shuffle_window=window)
    whole = [
        reader.read_rows(int(f), int(i)) for f, i in zip(groups.file, groups.index, strict=True)
    ]
    bounds = bounds_by_rows(start, reader.num_rows, batch)
    split = SplitByRows(world_size)
    ranks = [RankRows(reader, order, bounds, rank=r, split=split) for r in range(world_size)]
    for k, parts in enumerate(zip(*ranks, strict=True)):
        first, last = int(bounds[k]), int(bounds[k + 1])
        located = [(int(g), int(r)) for g, r in zip(*order.batch(first, last), strict=True)]
        for rank, (rows, source) in enumerate(parts):
            low, high = split(first, last, rank)
            mine = located[low:high]
            want = [whole[g].slice(r, 1) for g, r in mine]
            assert rows.num_rows == len(want) == high - low
            if want:
                assert rows.equals(pa.concat_batches(want))
            else:
                assert rows.schema == reader.schema
            names = [source.files[i] for i in source.file_index.tolist()]
            assert names == [reader.files[groups.file[g]].name for g, _ in mine]
            assert source.row.tolist() == [int(groups.first_row[g]) + r for g, r in mine]
    assert k + 1 == len(bounds) - 1


def test_read_ahead_changes_nothing(parquet: Callable[..., str]) -> None:
    reader = ParquetDataset(parquet())
    order = RowOrder(RowGroups(reader.files).rows, key="k", seed=0, epoch=0, shuffle_window=3)
    bounds = bounds_by_rows(0, reader.num_rows, 10)
    plain, ahead = (
        [
            rows
            for rows, _ in RankRows(
                reader, order, bounds, rank=0, split=SplitByRows(1), read_ahead=read_ahead
            )
        ]
        for read_ahead in (False, True)
    )
    assert len(plain) == len(ahead) == 21
    assert all(a.equals(b) for a, b in zip(plain, ahead, strict=True))


def test_a_row_group_is_decoded_once_and_only_where_needed(parquet: Callable[..., str]) -> None:
    reader = ParquetDataset(parquet((400,), row_group_size=10))
    order = RowOrder(RowGroups(reader.files).rows, key="k", seed=0, epoch=0, shuffle_window=8)
    reads: list[int] = []
    read = reader.read_rows
    reader.read_rows = lambda file, group, columns=None: (  # type: ignore[method-assign]
        reads.append(group) or read(file, group, columns)
    )
    bounds = bounds_by_rows(0, 400, 16)
    list(RankRows(reader, order, bounds, rank=0, split=SplitByRows(1)))
    assert sorted(reads) == list(range(40))
    reads.clear()
    for rank in range(4):
        list(RankRows(reader, order, bounds, rank=rank, split=SplitByRows(4)))
    assert len(reads) < 2.2 * 40, "four ranks decode each row group about once, not four times"
