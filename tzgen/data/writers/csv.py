# SPDX-License-Identifier: Apache-2.0
"""Delimited text parts with a header. A list becomes one cell, its values joined by `;`."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from tzgen.data.writers.base import WRITERS, HashingFile, Writer
from tzgen.errors import UserError

LIST_SEPARATOR = ";"


@WRITERS.register("CsvWriter")
class CsvWriter(Writer):
    """Columns of scalars and of lists of scalars; deeper nesting needs Parquet."""

    suffix = ".csv"

    def _begin(self, file: HashingFile, schema: pa.Schema) -> None:
        for field in schema:
            if pa.types.is_nested(field.type) and not _is_flat_list(field.type):
                raise UserError(
                    f"column {field.name!r}: found {field.type}; expected scalars or lists of "
                    "scalars in text output. Write it with ParquetWriter."
                )
        self._columns = pa.schema(
            [pa.field(f.name, pa.string() if _is_flat_list(f.type) else f.type) for f in schema]
        )
        self._csv = pacsv.CSVWriter(file, self._columns)

    def _write(self, rows: pa.RecordBatch) -> None:
        cells = [
            _joined(column) if _is_flat_list(column.type) else column for column in rows.columns
        ]
        self._csv.write(pa.RecordBatch.from_arrays(cells, schema=self._columns))

    def _end(self) -> None:
        self._csv.close()


def _is_flat_list(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list and not pa.types.is_nested(kind.value_type))


def _joined(column: pa.Array) -> pa.Array:
    words = pc.cast(column, pa.list_(pa.string()))
    return pc.binary_join(words, LIST_SEPARATOR)
