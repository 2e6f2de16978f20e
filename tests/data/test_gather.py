# SPDX-License-Identifier: Apache-2.0
"""Rows brought into batch order equal the plain, slow way; taking equals Arrow's own take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import pyarrow as pa
import pytest

from tzgen.data.batch import Source
from tzgen.data.gather import RankRows
from tzgen.data.order import RowOrder
from tzgen.data.plan import SplitByRows, bounds_by_rows, parse_together
from tzgen.data.readers import ParquetDataset
from tzgen.data.readers.base import RowGroups
from tzgen.data.staged import split_source


def one_by_one(items: RankRows) -> Iterator[tuple[pa.RecordBatch, Source]]:
    for item in items:
        start = 0
        for size, source in zip(item.sizes, split_source(item.source, item.sizes), strict=True):
            yield item.rows.slice(start, size), source
            start += size
        assert start == item.rows.num_rows


@pytest.mark.parametrize("window", [None, 1, 3, 99])
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("batch", [1, 7, 50, 500])
@pytest.mark.parametrize("start", [0, 45])
@pytest.mark.parametrize("at_once", [1, 4096])
def test_each_rank_gets_its_slice_of_each_batch(
    parquet: Callable[..., str],
    window: int | None,
    world_size: int,
    batch: int,
    start: int,
    at_once: int,
) -> None:
    reader = ParquetDataset(parquet())
    groups = RowGroups(reader.files)
    order = RowOrder(groups.rows, key="k", seed=0, epoch=0, shuffle_window=window)
    whole = [
        reader.read_rows(int(f), int(i)) for f, i in zip(groups.file, groups.index, strict=True)
    ]
    bounds = bounds_by_rows(start, reader.num_rows, batch)
    split = SplitByRows(world_size)
    together = parse_together(bounds, order.window_starts, at_once)
    ranks = [
        RankRows(reader, order, bounds, together, rank=r, split=split) for r in range(world_size)
    ]
    for k, parts in enumerate(zip(*(one_by_one(rank) for rank in ranks), strict=True)):
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
    together = parse_together(bounds, order.window_starts, 1)
    plain, ahead = (
        list(
            RankRows(
                reader, order, bounds, together, rank=0, split=SplitByRows(1), read_ahead=read_ahead
            )
        )
        for read_ahead in (False, True)
    )
    assert len(plain) == len(ahead) == 21
    assert all(a.rows.equals(b.rows) for a, b in zip(plain, ahead, strict=True))


def test_a_row_group_is_decoded_once_and_only_where_needed(parquet: Callable[..., str]) -> None:
    reader = ParquetDataset(parquet((400,), row_group_size=10))
    order = RowOrder(RowGroups(reader.files).rows, key="k", seed=0, epoch=0, shuffle_window=8)
    reads: list[tuple[int, str]] = []
    read = reader.read_groups
    reader.read_groups = lambda file, groups, columns: (  # type: ignore[method-assign]
        reads.extend((group, column) for group in groups for column in columns)
        or read(file, groups, columns)
    )
    bounds = bounds_by_rows(0, 400, 16)
    together = parse_together(bounds, order.window_starts, 4096)
    list(RankRows(reader, order, bounds, together, rank=0, split=SplitByRows(1)))
    assert sorted(reads) == sorted(product(range(40), reader.schema.names))
    reads.clear()
    for rank in range(4):
        list(RankRows(reader, order, bounds, together, rank=rank, split=SplitByRows(4)))
    assert len(reads) < 2.2 * 40 * len(reader.schema), (
        "four ranks decode each row group about once, not four times"
    )
