# SPDX-License-Identifier: Apache-2.0
"""Cutting an order into batches and a batch into slices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tzgen.data.order import RowOrder
from tzgen.data.plan import (
    GroupCosts,
    SplitByCost,
    SplitByRows,
    bounds_by_cost,
    bounds_by_rows,
    parse_together,
)
from tzgen.data.readers import ParquetDataset
from tzgen.data.readers.base import RowGroups
from tzgen.errors import DataError


@pytest.mark.parametrize(
    ("start", "stop", "want"),
    [(0, 7, [0, 3, 6, 7]), (0, 6, [0, 3, 6]), (5, 7, [5, 7]), (7, 7, [7]), (0, 2, [0, 2])],
)
def test_bounds_by_rows(start: int, stop: int, want: list[int]) -> None:
    assert bounds_by_rows(start, stop, 3).tolist() == want


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 8, 24])
def test_slices_tile_the_batch_evenly(world_size: int, rows: int) -> None:
    slices = [SplitByRows(world_size)(10, 10 + rows, rank) for rank in range(world_size)]
    assert [i for low, high in slices for i in range(low, high)] == list(range(rows))
    sizes = [high - low for low, high in slices]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("costs", "budget", "want"),
    [
        ([1, 1, 1, 1], 2, [0, 2, 4]),
        ([1, 2, 3, 4], 3, [0, 2, 3, 4]),
        ([9, 1, 1, 9], 3, [0, 1, 3, 4]),  # a row over the budget goes alone
        ([0, 0, 3, 0], 3, [0, 4]),
        ([], 3, [0]),
        ([0.5, 0.5, 0.5], 1, [0, 2, 3]),
    ],
)
def test_bounds_by_cost(costs: list[float], budget: float, want: list[int]) -> None:
    assert bounds_by_cost(0, np.array(costs, dtype=float), budget).tolist() == want
    shifted = bounds_by_cost(5, np.array(costs, dtype=float), budget).tolist()
    assert shifted == [5 + bound for bound in want]


def test_planning_again_from_a_bound_gives_the_same_batches() -> None:
    costs = np.random.default_rng(0).integers(0, 50, 500).astype(float)
    whole = bounds_by_cost(0, costs, 100)
    for k in (1, 7, len(whole) - 2):
        assert bounds_by_cost(int(whole[k]), costs[whole[k] :], 100).tolist() == whole[k:].tolist()


def test_slices_by_cost_tile_and_balance(parquet: Callable[..., str]) -> None:
    reader = ParquetDataset(parquet())
    order = RowOrder(RowGroups(reader.files).rows, key="k", seed=0, epoch=0, shuffle_window=3)
    costs = GroupCosts(reader, "cost")
    for world_size in (1, 2, 5):
        split = SplitByCost(world_size, order, costs)
        for first, last in [(0, 50), (40, 60), (199, 201), (3, 4)]:
            slices = [split(first, last, rank) for rank in range(world_size)]
            assert [i for a, b in slices for i in range(a, b)] == list(range(last - first))
            of_rows = costs.of(*order.batch(first, last))
            shares = [of_rows[a:b].sum() for a, b in slices]
            assert max(shares) <= of_rows.sum() / world_size + of_rows.max()


def test_costs_are_numbers_or_list_lengths(parquet: Callable[..., str]) -> None:
    reader = ParquetDataset(parquet(), columns=["id"])
    groups = RowGroups(reader.files)
    group = np.repeat(np.arange(len(groups.rows)), groups.rows)
    row = np.concatenate([np.arange(n) for n in groups.rows])
    ids = np.arange(201)
    assert GroupCosts(reader, "cost").of(group, row).tolist() == (ids % 7 + 1).tolist()
    assert GroupCosts(reader, "items").of(group, row).tolist() == (ids % 5).tolist()


@pytest.mark.parametrize(
    ("column", "found"),
    [(["x"], "string"), ([1, -2], "-2"), ([1.0, None], "None"), ([float("nan")], "nan")],
)
def test_useless_costs_are_refused(tmp_path, column: list, found: str) -> None:
    path = str(tmp_path / "c.parquet")
    pq.write_table(pa.table({"c": column}), path)
    with pytest.raises(DataError) as error:
        GroupCosts(ParquetDataset(path), "c")
    assert (error.value.file, error.value.row_group, error.value.column) == (path, 0, "c")
    assert error.value.found == found


@pytest.mark.parametrize(
    ("bounds", "rows", "want"),
    [
        ([0, 4, 8, 12, 16, 20], 100, [0, 2, 3, 5]),  # the third batch lies across windows
        ([0, 5, 10, 15, 20], 100, [0, 2, 4]),
        ([0, 5, 10, 15, 20], 5, [0, 1, 2, 3, 4]),
        ([0, 2, 4, 6, 8, 10, 12], 4, [0, 2, 4, 5, 6]),
        ([0, 15, 20], 100, [0, 1, 2]),
        ([0, 20], 100, [0, 1]),
        ([7, 9, 10, 11], 100, [0, 2, 3]),
        ([0], 100, [0]),
    ],
)
def test_what_is_parsed_together(bounds: list[int], rows: int, want: list[int]) -> None:
    together = parse_together(np.array(bounds), np.array([0, 10, 20]), rows)
    assert together.tolist() == want


def test_what_is_parsed_together_does_not_depend_on_where_it_starts() -> None:
    windows = np.arange(0, 1001, 125)
    bounds = bounds_by_rows(0, 1000, 9)
    whole = parse_together(bounds, windows, 40)
    for start in (1, 5, 60, len(bounds) - 2):
        rest = parse_together(bounds[start:], windows, 40) + start
        assert set(rest[1:].tolist()) <= set(whole.tolist()) and len(rest) > 1
