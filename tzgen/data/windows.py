# SPDX-License-Identifier: Apache-2.0
"""Training on every prefix of a sequence: a row becomes one sample for each item it could predict.

A row with history i_1 ... i_n and target i_{n+1} becomes, for every place t with at least
`min_items` items before it, a sample with the newest `max_items` of i_1 ... i_{t-1} as history and
i_t as target. Other columns are repeated. Array operations over whole batches of rows; the samples
of a row stay together, so that batch_size counts rows, and their number follows from the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from tzgen.data.batch import Batch, Source
from tzgen.errors import DataError, UserError

Ints = NDArray[np.int64]
Parse = Callable[[pa.RecordBatch, Source], Batch]


@dataclass(frozen=True)
class SlidingWindow:
    """The proto SlidingWindow. columns: (history, target) pairs."""

    columns: tuple[tuple[str, str], ...]
    max_items: int
    min_items: int

    @staticmethod
    def of(message: Any, read: Sequence[str]) -> SlidingWindow:
        """`read`: the columns of the input; others named here are nobody's, and refused."""
        pairs = tuple(zip(message.history, message.target, strict=True))
        for name in (name for pair in pairs for name in pair):
            if name not in read:
                raise UserError(
                    f"data_config.sliding_window names the column {name!r}, which no feature "
                    f"reads; read are {', '.join(read)}. Remove the pair"
                )
        return SlidingWindow(pairs, message.max_items, message.min_items)


@dataclass(frozen=True)
class WindowParse:
    """A parser that is given samples instead of rows. Picklable where `parse` is."""

    parse: Parse
    window: SlidingWindow

    def __call__(self, rows: pa.RecordBatch, source: Source) -> Batch:
        samples, row = windows(rows, self.window, source)
        at = torch.from_numpy(row)
        return self.parse(samples, Source(source.files, source.file_index[at], source.row[at]))


def windows(
    rows: pa.RecordBatch, window: SlidingWindow, source: Source
) -> tuple[pa.RecordBatch, Ints]:
    """The samples of `rows`, and the row of each, int64 [samples]. Raises DataError by row."""
    lengths = {name: _lengths(rows, name, source) for pair in window.columns for name in pair}
    first, after = (lengths[name] for name in window.columns[0])
    for history, target in window.columns[1:]:
        _same(lengths[history], first, history, window.columns[0][0], source)
        _same(lengths[target], after, target, window.columns[0][1], source)
    counts = np.maximum(first + after - window.min_items, 0)
    row = np.repeat(np.arange(len(counts)), counts)
    place = window.min_items + _within(counts)  # of the target in the row's sequence
    begin = np.maximum(place - window.max_items, 0)
    taken: dict[str, pa.Array] = {}
    for history, target in window.columns:
        found = _cut(rows[history], rows[target], first, after, row, begin, place)
        taken[history], taken[target] = found
    index = pa.array(row)
    columns = [
        taken[name] if name in taken else rows[name].take(index) for name in rows.schema.names
    ]
    return pa.RecordBatch.from_arrays(columns, names=rows.schema.names), row


def _cut(
    history: pa.Array,
    target: pa.Array,
    first: Ints,
    after: Ints,
    row: Ints,
    begin: Ints,
    place: Ints,
) -> tuple[pa.Array, pa.Array]:
    """History and target of every sample, in the types of the columns."""
    before = history.flatten()
    kind = before.type
    nexts = target.flatten() if _is_list(target.type) else target.drop_null()
    values = pa.concat_arrays([before, nexts.cast(kind)])
    starts, ends = np.cumsum(first) - first, len(before) + np.cumsum(after) - after

    def at(of: Ints, where: Ints) -> Ints:
        """Place `where` of the sequence of row `of`, in `values`."""
        inside = where < first[of]
        return np.where(inside, starts[of] + where, ends[of] + where - first[of])

    size = place - begin
    sample = np.repeat(np.arange(len(row)), size)
    kept = values.take(pa.array(at(row[sample], begin[sample] + _within(size))))
    offsets = np.concatenate([[0], np.cumsum(size)])
    made = _listed(offsets, kept, history.type)
    chosen = values.take(pa.array(at(row, place)))
    if _is_list(target.type):
        chosen = chosen.cast(target.type.value_type)
        return made, _listed(np.arange(len(row) + 1), chosen, target.type)
    return made, chosen.cast(target.type)


def _listed(offsets: Ints, values: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_large_list(kind):
        return pa.LargeListArray.from_arrays(pa.array(offsets.astype(np.int64)), values)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _lengths(rows: pa.RecordBatch, name: str, source: Source) -> Ints:
    """Values of each row: 0 for null; a column without lists has 1 a row."""
    column = rows[name]
    if not _is_list(column.type):
        if pa.types.is_string(column.type) or pa.types.is_nested(column.type):
            raise DataError(
                file=source.files[0] if source.files else "batch",
                column=name,
                found=f"a column of {column.type}",
                expected="lists, oldest first; a target may be one value",
                remedy="sliding_window cuts list columns: store the sequence as a list.",
            )
        return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), dtype=np.int64)
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    return np.asarray(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)


def _same(mine: Ints, other: Ints, name: str, first: str, source: Source) -> None:
    wrong = np.flatnonzero(mine != other)
    if wrong.size:
        row = int(wrong[0])
        known = len(source.files) > 0
        raise DataError(
            file=source.files[int(source.file_index[row])] if known else "batch",
            row=int(source.row[row]),
            column=name,
            found=f"{mine[row]} values",
            expected=f"{other[row]}, as in {first!r}",
            remedy="Columns of sliding_window describe the same events: make them equally long.",
        )


def _within(counts: Ints) -> Ints:
    """0 .. count - 1 of every count, one after the other."""
    total = int(counts.sum())
    return np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
