# SPDX-License-Identifier: Apache-2.0
"""Where an epoch's order is cut into global batches, and a batch into the ranks' slices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tzgen.data.order import Int64, RowOrder
from tzgen.data.readers.base import Reader, RowGroups
from tzgen.errors import DataError


@dataclass(frozen=True)
class BatchCost:
    """Batches of equal cost instead of equal rows: data_config.sample_cost_field, batch_cost_size.

    A row costs the number in `column`, or the length of the list there. `budget` is per rank.
    """

    column: str
    budget: int


Split = Callable[[int, int, int], tuple[int, int]]
"""(first row, last row + 1, rank) -> that rank's slice of the batch [first, last)."""


def bounds_by_rows(start: int, stop: int, batch_rows: int) -> Int64:
    """int64 [K + 1]: batch k is rows [bounds[k], bounds[k + 1]); the last may be short."""
    return np.append(np.arange(start, stop, batch_rows, dtype=np.int64), stop)


def bounds_by_cost(start: int, costs: NDArray[np.float64], budget: float) -> Int64:
    """The longest runs of rows whose costs sum to at most `budget`; a dearer row goes alone.

    costs float64 [n], of the rows from `start` to the end, in order.
    """
    total = np.cumsum(costs)
    bounds, row, spent = [start], 0, 0.0
    while row < len(costs):
        end = int(np.searchsorted(total, spent + budget, side="right"))
        row = max(end, row + 1)
        spent = float(total[row - 1])
        bounds.append(start + row)
    return np.array(bounds, dtype=np.int64)


def parse_together(bounds: Int64, window_starts: Int64, rows: int) -> Int64:
    """int64 [C + 1]: batches [out[c], out[c + 1]) are parsed at once: about `rows` rows.

    A batch costs a parser some time per column, however few its rows; several at once share it.
    They lie in one window, except that a batch across windows is parsed alone. The same for every
    rank, and wherever an epoch resumes.
    """
    begins, ends = bounds[:-1], bounds[1:]
    window = np.searchsorted(window_starts, begins, side="right")
    across = window != np.searchsorted(window_starts, ends - 1, side="right")
    block = (begins - window_starts[window - 1]) // rows
    new = np.ones(len(begins), dtype=bool)
    new[1:] = (np.diff(window) != 0) | (np.diff(block) != 0) | across[1:] | across[:-1]
    return np.append(np.flatnonzero(new), len(begins))


@dataclass(frozen=True)
class SplitByRows:
    """Slices that differ by one row at most; some are empty if rows are fewer than ranks."""

    world_size: int

    def __call__(self, first: int, last: int, rank: int) -> tuple[int, int]:
        rows = last - first
        return rank * rows // self.world_size, (rank + 1) * rows // self.world_size


@dataclass(frozen=True)
class SplitByCost:
    """Contiguous slices of nearly equal cost: each exceeds its share by less than one row."""

    world_size: int
    order: RowOrder
    costs: GroupCosts

    def __call__(self, first: int, last: int, rank: int) -> tuple[int, int]:
        total = np.cumsum(self.costs.of(*self.order.batch(first, last)))
        shares = total[-1] * np.array([rank, rank + 1]) / self.world_size
        begin, end = np.searchsorted(total, shares, side="left")
        return (int(begin) if rank else 0), (
            int(end) if rank + 1 < self.world_size else last - first
        )


class GroupCosts:
    """The cost of every row, read once: float64 [rows], flat in file order."""

    def __init__(self, reader: Reader, column: str) -> None:
        groups = RowGroups(reader.files)
        self._starts = np.concatenate([[0], np.cumsum(groups.rows)]).astype(np.int64)
        costs = [np.zeros(0)]
        for file, index in zip(groups.file.tolist(), groups.index.tolist(), strict=True):
            rows = reader.read_rows(file, index, [column])
            costs.append(_costs(rows.column(0), reader.files[file].path, index, column))
        self._costs = np.concatenate(costs)

    def of(self, group: Int64, row: Int64) -> NDArray[np.float64]:
        """Costs of rows given as (flat row group, row within it)."""
        return self._costs[self._starts[group] + row]


def _costs(values: pa.Array, path: str, row_group: int, column: str) -> NDArray[np.float64]:
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        values = pc.fill_null(pc.list_value_length(values), 0)
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise _cost_error(path, row_group, column, str(kind))
    costs: NDArray[np.float64] = pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False)
    bad = ~(costs >= 0)  # NaN, which a null becomes, included
    if bad.any():
        raise _cost_error(path, row_group, column, f"{values[int(np.argmax(bad))]}")
    return costs


def _cost_error(path: str, row_group: int, column: str, found: str) -> DataError:
    return DataError(
        file=path,
        row_group=row_group,
        column=column,
        found=found,
        expected="a number that is not negative, or a list, as cost of the row",
        remedy="Name another column in data_config.sample_cost_field, or mend the values.",
    )
