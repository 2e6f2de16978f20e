# SPDX-License-Identifier: Apache-2.0
"""Parsing the rows of several batches at once, and cutting the result into the batches.

A parser spends some 50 microseconds a column and call before it looks at a row; over thousands of
rows that is nothing, over a batch of 100 it is most of the work. Tensors of the parts are views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
from torch import Tensor

from tzgen.data.batch import Batch, Ids, Ragged, Source
from tzgen.errors import UserError

Parse = Callable[[pa.RecordBatch, Source], Batch]
T = TypeVar("T")


def as_it_is(batch: Batch) -> Batch:
    return batch


@dataclass(frozen=True)
class Staged:
    """A parser in two steps, for BatchLoader: `parse` must treat each row by itself and return a
    plain Batch; it is called with the rows of many batches. `finish` is called with each batch."""

    parse: Parse
    finish: Callable[[Batch], Batch] = as_it_is

    def __call__(self, rows: pa.RecordBatch, source: Source) -> Batch:
        return self.finish(self.parse(rows, source))


def parse_parts(
    parse: Parse, rows: pa.RecordBatch, source: Source, sizes: Sequence[int]
) -> Iterator[Batch]:
    """The batches of `sizes` rows that `rows` holds one after the other.

    An error comes after the batches before the guilty one, as if each had been parsed by itself.
    """
    if isinstance(parse, Staged) and len(sizes) > 1:
        try:
            whole = parse.parse(rows, source)
        except UserError:
            pass  # again, batch by batch, up to the one with the error
        else:
            for part in split_batch(whole, sizes):
                yield parse.finish(part)
            return
    sources = split_source(source, sizes)
    start = 0
    for size, place in zip(sizes, sources, strict=True):
        yield parse(rows.slice(start, size), place)
        start += size


def split_source(source: Source, sizes: Sequence[int]) -> list[Source]:
    if len(sizes) == 1:
        return [source]
    parts = zip(source.file_index.split(list(sizes)), source.row.split(list(sizes)), strict=True)
    return [Source(source.files, index, row) for index, row in parts]


def split_batch(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    """`batch` cut into consecutive parts of `sizes` rows; counters go to the first part."""
    if type(batch) is not Batch:
        raise TypeError(
            f"a {type(batch).__name__} cannot be cut; return a Batch, add to it in finish"
        )
    cut = _Cutter(batch, sizes)
    ids = {name: cut.ids(value) for name, value in batch.ids.items()}
    dense = {name: cut.rows_or_steps(value) for name, value in batch.dense.items()}
    labels = {name: cut.rows_or_steps(value) for name, value in batch.labels.items()}
    weights = {name: cut.rows_or_steps(value) for name, value in batch.weights.items()}
    raw_ids = {name: cut.rows(value) for name, value in batch.raw_ids.items()}
    sources = [None] * len(sizes) if batch.source is None else split_source(batch.source, sizes)
    passed, starts = batch.passthrough, np.cumsum([0, *sizes]).tolist()
    return [
        Batch(
            num_rows=size,
            ids=_part(ids, i),
            dense=_part(dense, i),
            labels=_part(labels, i),
            weights=_part(weights, i),
            raw_ids=_part(raw_ids, i),
            counters=batch.counters if i == 0 else {},
            source=sources[i],
            passthrough=None if passed is None else passed.slice(starts[i], size),
        )
        for i, size in enumerate(sizes)
    ]


def _part(columns: dict[str, Sequence[T]], index: int) -> dict[str, T]:
    return {name: parts[index] for name, parts in columns.items()}


class _Cutter:
    """Cuts tensors of one batch; one that several features share is cut once and stays shared."""

    def __init__(self, batch: Batch, sizes: Sequence[int]) -> None:
        self._sizes = list(sizes)
        self._kept: list[Tensor] = []  # so that no id is used again
        self._cut: dict[tuple[int, int], Sequence[Tensor]] = {}
        self._sums: dict[tuple[int, int], list[int]] = {}
        self._longest: dict[int, list[int]] = {}

    def rows(self, values: Tensor) -> Sequence[Tensor]:
        return self._split(values, self._sizes)

    def rows_or_steps(self, value: Tensor | Ragged) -> Sequence[Tensor | Ragged]:
        if isinstance(value, Tensor):
            return self.rows(value)
        values = self._split(value.values, self._totals(value.lengths, self._sizes))
        lengths, longest = self.rows(value.lengths), self._maxima(value.lengths)
        return [Ragged(v, n, most) for v, n, most in zip(values, lengths, longest, strict=True)]

    def ids(self, ids: Ids) -> Sequence[Ids]:
        """Rows to bags to values: a bag is a row, or one step of a sequence."""
        count = len(self._sizes)
        bags, longest = self._sizes, [0] * count
        steps: Sequence[Tensor | None] = [None] * count
        if ids.seq_lengths is not None:
            bags = self._totals(ids.seq_lengths, self._sizes)
            steps, longest = self.rows(ids.seq_lengths), self._maxima(ids.seq_lengths)
        totals = self._totals(ids.lengths, bags)
        lengths, values = self._split(ids.lengths, bags), self._split(ids.values, totals)
        weights: Sequence[Tensor | None] = [None] * count
        if ids.weights is not None:
            weights = self._split(ids.weights, totals)
        return [Ids(*part) for part in zip(values, lengths, weights, steps, longest, strict=True)]

    def _split(self, values: Tensor, sizes: list[int]) -> Sequence[Tensor]:
        key = (id(values), id(sizes))
        if key not in self._cut:
            self._kept.append(values)
            self._cut[key] = values.split(sizes)
        return self._cut[key]

    def _totals(self, lengths: Tensor, sizes: list[int]) -> list[int]:
        """The sum of `lengths` in each part of `sizes`."""
        key = (id(lengths), id(sizes))
        if key not in self._sums:
            self._kept.append(lengths)
            ends = np.concatenate([[0], np.cumsum(lengths.numpy())])
            self._sums[key] = np.diff(ends[np.cumsum([0, *sizes])]).tolist()
        return self._sums[key]

    def _maxima(self, lengths: Tensor) -> list[int]:
        """The largest of `lengths` in each part, 0 for a part without rows."""
        if id(lengths) not in self._longest:
            self._kept.append(lengths)
            sizes = np.array(self._sizes)
            starts, longest = np.cumsum(sizes) - sizes, np.zeros(len(sizes), np.int64)
            filled = sizes > 0  # an empty part starts where the next does: leaving it out is exact
            if filled.any():
                longest[filled] = np.maximum.reduceat(lengths.numpy(), starts[filled])
            self._longest[id(lengths)] = longest.tolist()
        return self._longest[id(lengths)]
