# SPDX-License-Identifier: Apache-2.0
"""Record batches to Batches: reads the columns, evaluates the features, checks, makes tensors.

One FeatureParser is pickled to every loader worker. B rows.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from google.protobuf.message import Message

from tzgen.data.batch import Batch, Source
from tzgen.errors import DataError
from tzgen.features.arrow import pairs_of, read_bags, read_pairs
from tzgen.features.bags import I64, BadValue, Bags
from tzgen.features.base import Feature, Input, const
from tzgen.features.cross import read_nested
from tzgen.features.graph import evaluation_order
from tzgen.features.labels import LabelColumns, label_columns, read_label, read_raw_id, read_weight
from tzgen.features.sequence import equally_long
from tzgen.features.tensors import Shared, Steps, tensor, to_dense, to_ids

_NO_LABELS = LabelColumns((), (), ())


class FeatureParser:
    """RecordBatch -> Batch for the features of one config.

    `labels=False` (prediction) leaves out labels, sample weights and raw ids. `reserved_columns`
    are passed through as they are, in `Batch.passthrough`.
    """

    def __init__(
        self,
        config: Message,
        features: Sequence[Feature],
        *,
        labels: bool = True,
        reserved_columns: Sequence[str] = (),
    ) -> None:
        self.features = tuple(feature for feature in features if not feature.stub)
        self._order = evaluation_order(features)
        self._labels = label_columns(config, self.features) if labels else _NO_LABELS
        self._reserved = tuple(reserved_columns)
        data_config = config.data_config  # type: ignore[attr-defined]
        policies = data_config.DESCRIPTOR.fields_by_name["out_of_range_ids"].enum_type
        self._policy = str(policies.values_by_number[data_config.out_of_range_ids].name)
        self._together = equally_long(config, self.features)

    @property
    def input_columns(self) -> list[str]:
        """Every column that `parse` reads, each once."""
        inputs = (column for feature in self._order for column in feature.input_columns)
        return list(dict.fromkeys((*inputs, *self._labels.columns, *self._reserved)))

    def parse(self, rows: pa.RecordBatch, source: Source) -> Batch:
        reading = _Reading(rows, source)
        values: dict[str, Bags] = {}
        for feature in self._order:
            inputs = [reading.value(one, values) for one in feature.inputs]
            with reading.place(_column(feature)):
                values[feature.name] = feature.evaluate(inputs)
        shared = Shared(self._steps(values, reading), {})
        batch = Batch(rows.num_rows, counters=shared.counters, source=source)
        for feature in self.features:
            bags, name = values[feature.name], feature.name
            with reading.place(_column(feature)):
                if feature.is_sparse:
                    batch.ids[name] = to_ids(feature, bags, shared, self._policy)
                else:
                    batch.dense[name] = to_dense(feature, bags, shared)
            if bags.cut:
                shared.counters[f"truncated/{feature.sequence_name or name}"] = bags.cut
        self._read_labels(batch, reading, shared)
        if self._reserved:
            arrays = [reading.column(name) for name in self._reserved]
            batch.passthrough = pa.RecordBatch.from_arrays(arrays, names=list(self._reserved))
        return batch

    def _read_labels(self, batch: Batch, reading: _Reading, shared: Shared) -> None:
        for columns, into, read in (
            (self._labels.labels, batch.labels, read_label),
            (self._labels.weights, batch.weights, read_weight),
        ):
            for name, layout, owner in columns:
                column = reading.column(name)
                with reading.place(name):
                    into[name] = read(column, layout, shared.steps.get(owner))
        for name, source_column in self._labels.raw_ids:
            column = reading.column(source_column)
            with reading.place(source_column):
                batch.raw_ids[name] = read_raw_id(column)

    def _steps(self, values: dict[str, Bags], reading: _Reading) -> dict[str, Steps]:
        """Lengths by feature; those of one sequence have to be equal, and share a tensor."""
        found: dict[str, Steps] = {}
        for names in self._together:
            first = values[names[0]].steps
            assert first is not None, "a sequence feature has steps"
            shared = Steps(tensor(first), int(first.max(initial=0)))
            for name in names:
                _require_equal(names[0], first, name, values[name].steps, reading)
                found[name] = shared
        return found


def _require_equal(
    first: str, steps: I64, name: str, others: I64 | None, reading: _Reading
) -> None:
    if others is None or np.array_equal(steps, others):
        return
    row = int(np.flatnonzero(steps != others)[0])
    error = BadValue(
        found=f"{others[row]} steps, and {steps[row]} in {first!r}",
        expected="the features of one sequence to have equal lengths",
        remedy="Write all columns of a sequence from the same events.",
        row=row,
    )
    raise reading.located(name, error)


def _column(feature: Feature) -> str:
    return ", ".join(feature.input_columns) or feature.name


class _Reading:
    """The columns of one record batch, each cut once per layout; errors get file and row."""

    def __init__(self, rows: pa.RecordBatch, source: Source) -> None:
        self._rows, self._source = rows, source
        self._index = {name: at for at, name in enumerate(rows.schema.names)}
        self._cache: dict[tuple[Any, ...], Any] = {}

    def column(self, name: str) -> pa.Array:
        at = self._index.get(name)
        if at is None:
            near = difflib.get_close_matches(name, self._index, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(
                file=self._file(None)[0],
                column=name,
                found=f"the columns {', '.join(self._index) or '(none)'}",
                expected="this column, which a feature or label reads",
                remedy=f"Add it where the data is prepared, or correct the config.{hint}",
            )
        return self._rows.column(at)

    def value(self, wanted: Input, values: dict[str, Bags]) -> Any:
        if wanted.source == "const":
            return const(wanted.name, self._rows.num_rows)
        if wanted.source == "feature":
            bags = values[wanted.name]
            return pairs_of(bags) if wanted.form == "pairs" else bags
        key = (wanted.name, wanted.layout, wanted.form)
        if key not in self._cache:
            column = self.column(wanted.name)
            with self.place(wanted.name):
                self._cache[key] = _read(column, wanted)
        return self._cache[key]

    @contextmanager
    def place(self, column: str) -> Iterator[None]:
        """A BadValue raised inside becomes a DataError with its place."""
        try:
            yield
        except BadValue as error:
            raise self.located(column, error) from error

    def located(self, column: str, error: BadValue) -> DataError:
        file, row = self._file(error.row)
        return DataError(
            file=file,
            column=column,
            row=row,
            found=error.found,
            expected=error.expected,
            remedy=error.remedy,
        )

    def _file(self, row: int | None) -> tuple[str, int | None]:
        source = self._source
        if row is not None and row < len(source.row):
            return source.files[int(source.file_index[row])], int(source.row[row])
        return ", ".join(source.files) or "input", None


def _read(column: pa.Array, wanted: Input) -> Any:
    if wanted.form == "pairs":
        return read_pairs(column, wanted.layout.separator)
    if wanted.form == "nested":
        return read_nested(column)
    return read_bags(column, wanted.layout)
