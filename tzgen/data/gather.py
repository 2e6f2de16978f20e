# SPDX-License-Identifier: Apache-2.0
"""The rows of one rank: read row groups, bring their rows into the order of the batches.

Each row group is decoded once per epoch and rank, and only if the rank's slices touch it. Work is
done per window and column, never per row.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from tzgen.data.batch import Source
from tzgen.data.order import Int64, RowOrder, Window
from tzgen.data.plan import Split
from tzgen.data.readers.base import Reader, RowGroups
from tzgen.data.take import take_rows

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """This rank's rows of consecutive batches, one after the other: `sizes` rows each."""

    rows: pa.RecordBatch
    source: Source
    sizes: list[int]


@dataclass(frozen=True)
class _Piece:
    """What one window gives to one item of RankRows."""

    complete: bool  # no later window adds to it
    rows: pa.RecordBatch
    file: NDArray[np.int32]
    row: Int64


class RankRows:
    """Iterates `Rows`: item i holds global batches [together[i], together[i + 1]).

    bounds int64 [K + 1] as of `plan.bounds_by_rows`, together as of `plan.parse_together`.
    read_ahead decodes the next window in a thread while the current one is used: twice the memory,
    no pause between windows.
    """

    def __init__(
        self,
        reader: Reader,
        order: RowOrder,
        bounds: Int64,
        together: Int64,
        *,
        rank: int,
        split: Split,
        read_ahead: bool = False,
    ) -> None:
        self._reader, self._order = reader, order
        self._bounds, self._together = bounds, together
        self._rank, self._split, self._read_ahead = rank, split, read_ahead
        self._groups = RowGroups(reader.files)
        self._names = tuple(info.name for info in reader.files)
        self._sizes = np.zeros(len(bounds) - 1, dtype=np.int64)

    @property
    def batches_per_item(self) -> list[int]:
        return [int(count) for count in np.diff(self._together)]

    def __iter__(self) -> Iterator[Rows]:
        waiting: list[_Piece] = []
        done = 0
        windows = self._windows()
        for pieces in ahead(windows) if self._read_ahead else windows:
            for piece in pieces:
                waiting.append(piece)
                if piece.complete:
                    yield self._join(waiting, self._sizes_of(done))
                    waiting, done = [], done + 1
            del pieces  # or two windows would be held while the next is read

    def _sizes_of(self, item: int) -> list[int]:
        return [int(n) for n in self._sizes[self._together[item] : self._together[item + 1]]]

    def _windows(self) -> Iterator[list[_Piece]]:
        if len(self._bounds) < 2:
            return
        for window in self._order.windows(int(self._bounds[0]), int(self._bounds[-1])):
            yield self._load(window)

    def _load(self, window: Window) -> list[_Piece]:
        """Decode this rank's share of a window and cut it into pieces of the items it touches."""
        bounds, end = self._bounds, window.first + window.num_rows
        first = max(int(np.searchsorted(bounds, window.first, side="right")) - 1, 0)
        last = int(np.searchsorted(bounds, min(end, int(bounds[-1])), side="left"))
        cuts = np.clip(bounds[first : last + 1] - window.first, 0, window.num_rows)
        batch, window_rows = _arranged(window, cuts)
        keep = self._slices(np.arange(first, last), cuts, window.first)
        batch, window_rows = batch[keep], window_rows[keep]
        group, row = window.locate(window_rows)
        rows = self._read(window, group, row)
        flat = window.groups[group]
        file, file_row = self._groups.file[flat], self._groups.first_row[flat] + row
        item = int(np.searchsorted(self._together, first, side="right")) - 1
        pieces, start = [], 0
        while self._together[item] < last:
            beyond = int(self._together[item + 1])
            stop = int(np.searchsorted(batch, beyond - first, side="left"))
            place = slice(start, stop)
            complete = bool(bounds[beyond] <= end)
            pieces.append(
                _Piece(complete, rows.slice(start, stop - start), file[place], file_row[place])
            )
            start, item = stop, item + 1
        return pieces

    def _slices(self, batches: Int64, cuts: Int64, first_row: int) -> Bools:
        """Which rows of the window, in batch order, are in this rank's slice of their batch."""
        keep = np.zeros(int(cuts[-1] - cuts[0]), dtype=bool)
        for i, index in enumerate(batches.tolist()):
            begin, end = int(self._bounds[index]), int(self._bounds[index + 1])
            low, high = self._split(begin, end, self._rank)
            self._sizes[index] = high - low
            here, beyond = int(cuts[i] - cuts[0]), int(cuts[i + 1] - cuts[0])
            # Rows of the batch that earlier windows held come before those of this one.
            shift = here - max(first_row - begin, 0)
            low, high = np.clip([low + shift, high + shift], here, beyond)
            keep[low:high] = True
        return keep

    def _read(self, window: Window, group: Int64, row: Int64) -> pa.RecordBatch:
        """The rows at (group, row) of a window; row groups of one file are decoded together.

        Where the reader can, column by column: one column of a window stays in the cache between
        decoding and taking, and only what was taken is kept.
        """
        needed = np.flatnonzero(np.bincount(group, minlength=len(window.groups)))
        if not len(needed):
            return pa.RecordBatch.from_pylist([], schema=self._reader.schema)
        by_place = np.argsort(window.groups[needed])
        needed = needed[by_place]
        flat = window.groups[needed]
        sizes = self._groups.rows[flat]
        starts = np.zeros(len(window.groups), dtype=np.int64)
        starts[needed] = np.cumsum(sizes) - sizes
        wanted = starts[group] + row
        names = self._reader.schema.names
        columns: list[pa.Array] = []
        for some in [[name] for name in names] if self._reader.by_column else [names]:
            columns += take_rows(self._decode(flat, some), wanted).columns
        return pa.RecordBatch.from_arrays(columns, schema=self._reader.schema)

    def _decode(self, flat: Int64, columns: list[str]) -> pa.RecordBatch:
        parts = []
        for file, some in groupby(flat.tolist(), key=lambda i: int(self._groups.file[i])):
            indices = [int(self._groups.index[i]) for i in some]
            parts.append(self._reader.read_groups(file, indices, columns))
        return parts[0] if len(parts) == 1 else pa.concat_batches(parts)

    def _join(self, pieces: list[_Piece], sizes: list[int]) -> Rows:
        filled = [piece.rows for piece in pieces if piece.rows.num_rows] or [pieces[0].rows]
        rows = filled[0] if len(filled) == 1 else pa.concat_batches(filled)
        files, index = np.unique(
            np.concatenate([piece.file for piece in pieces]), return_inverse=True
        )
        source = Source(
            files=tuple(self._names[file] for file in files.tolist()),
            file_index=torch.from_numpy(index.astype(np.int32)),
            row=torch.from_numpy(np.concatenate([piece.row for piece in pieces])),
        )
        return Rows(rows, source, sizes)


def _arranged(window: Window, cuts: Int64) -> tuple[Int64, Int64]:
    """(batch, window row) of places [cuts[0], cuts[-1]), laid out as `RowOrder.batch` does."""
    rows = window.at(int(cuts[0]), int(cuts[-1]))
    batch = np.repeat(np.arange(len(cuts) - 1), np.diff(cuts))
    if window.rows is None:
        return batch, rows
    keys = batch * window.num_rows + rows
    keys.sort()
    return batch, keys - batch * window.num_rows


def ahead(items: Iterator[list[_Piece]]) -> Iterator[list[_Piece]]:
    """The same items, each computed in a thread while the one before it is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="tzgen-read-ahead") as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
