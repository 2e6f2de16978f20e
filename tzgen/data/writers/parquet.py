# SPDX-License-Identifier: Apache-2.0
"""Parquet parts, with row groups of the size that the reader likes."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from tzgen.data.writers.base import WRITERS, HashingFile, Writer

ROW_GROUP_ROWS = 10_000


@WRITERS.register("ParquetWriter")
class ParquetWriter(Writer):
    """Rows are gathered into row groups of ROW_GROUP_ROWS, however small the batches."""

    suffix = ".parquet"

    def _begin(self, file: HashingFile, schema: pa.Schema) -> None:
        self._parquet = pq.ParquetWriter(file, schema)
        self._waiting: list[pa.RecordBatch] = []

    def _write(self, rows: pa.RecordBatch) -> None:
        self._waiting.append(rows)
        if sum(batch.num_rows for batch in self._waiting) >= ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._parquet.write_table(pa.Table.from_batches(self._waiting), ROW_GROUP_ROWS)
        self._waiting = []

    def _end(self) -> None:
        if self._waiting:
            self._flush()
        self._parquet.close()
