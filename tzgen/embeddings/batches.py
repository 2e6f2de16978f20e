# SPDX-License-Identifier: Apache-2.0
"""What loader workers do for the embedding layer, both engines: check ids and lengths of a batch.

fbgemm turns an id outside its table into row 0 with a warning, and lengths that differ within a
group shift every later step; both are caught here, on the CPU, where the file and row are known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tzgen.data.batch import Batch, Ids, Ragged, Source
from tzgen.embeddings.plan import Plan
from tzgen.embeddings.tables import ids_of, row_lengths
from tzgen.errors import DataError

Parse = Callable[[Any, Source], Batch]  # (rows: pa.RecordBatch, source) -> Batch


@dataclass(frozen=True)
class CheckedParse:
    """A parser whose batches fit the plan. Picklable, as loader workers need."""

    parse: Parse
    tables: tuple[tuple[str, int], ...]  # feature, rows of its table
    sequences: tuple[tuple[str, tuple[str, ...]], ...]  # group, features of equal lengths

    @staticmethod
    def of(plan: Plan, parse: Parse) -> CheckedParse:
        sizes = {
            (lookup.feature, plan.tables[lookup.table].num_embeddings)
            for lookup in plan.lookups.values()
        }
        return CheckedParse(parse, tuple(sorted(sizes)), tuple(plan.sequences()))

    def __call__(self, rows: Any, source: Source) -> Batch:
        batch = self.parse(rows, source)
        for feature, size in self.tables:
            _check_ids(ids_of(batch, feature), feature, size, source)
        for group, features in self.sequences:
            _check_lengths(batch, group, features, source)
        return batch


def _check_ids(ids: Ids, feature: str, size: int, source: Source) -> None:
    if not ids.values.numel():
        return
    low, high = torch.aminmax(ids.values)
    if int(low) >= 0 and int(high) < size:
        return
    position = int(((ids.values < 0) | (ids.values >= size)).nonzero()[0])
    row = int(torch.searchsorted(torch.cumsum(row_lengths(ids), 0), position, right=True))
    raise _error(
        source,
        row,
        column=feature,
        found=f"id {int(ids.values[position])}",
        expected=f"ids from 0 to {size - 1}, the rows of its table",
        remedy="Raise num_buckets, or repair the column.",
    )


def _check_lengths(batch: Batch, group: str, features: tuple[str, ...], source: Source) -> None:
    first = _steps(batch, features[0])
    for name in features[1:]:
        other = _steps(batch, name)
        if torch.equal(first, other):
            continue
        row = int((first != other).nonzero()[0])
        raise _error(
            source,
            row,
            column=name,
            found=f"{int(other[row])} steps",
            expected=f"{int(first[row])} as in {features[0]!r}: both are in group {group!r}",
            remedy="Make the columns equally long, or put them into different groups.",
        )


def _steps(batch: Batch, feature: str) -> Tensor:
    if feature in batch.ids:
        lengths = batch.ids[feature].seq_lengths
    else:
        numbers = batch.dense.get(feature)
        lengths = numbers.lengths if isinstance(numbers, Ragged) else None
    if lengths is None:
        raise ValueError(f"feature {feature!r} is no sequence in this batch")
    return lengths


def _error(source: Source, row: int, **what: str) -> DataError:
    known = row < source.row.numel() and len(source.files) > 0
    file = source.files[int(source.file_index[row])] if known else "batch"
    return DataError(file=file, row=int(source.row[row]) if known else row, **what)  # type: ignore[arg-type]
