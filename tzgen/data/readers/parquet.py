# SPDX-License-Identifier: Apache-2.0
"""Parquet files, one row group at a time.

Writers should make row groups of about 10,000 rows: a group is the unit of reading and of the
shuffle window, and is held decoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from tzgen.data.readers.base import (
    READERS,
    FileInfo,
    FileReader,
    duplicate_names,
    first_line,
)
from tzgen.data.readers.paths import Listing, list_files
from tzgen.data.readers.types import input_fields
from tzgen.errors import DataError
from tzgen.protos import data_pb2

SUFFIXES = (".parquet", ".parq", ".pq")
FOOTER_THREADS = 16  # footers are latency-bound on object stores
OPEN_FILES = 16
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "FLOAT": 4, "DOUBLE": 8}
TEXT_BYTES = 16


@READERS.register("ParquetDataset")
class ParquetDataset(FileReader):
    """Rows of Parquet files; list, map, dictionary and large types are passed on as they are."""

    def __init__(
        self,
        input_path: str,
        *,
        columns: Sequence[str] | None = None,
        declared: Mapping[str, pa.DataType | None] = MappingProxyType({}),
    ) -> None:
        listing = list_files(input_path, SUFFIXES)
        self._filesystem = listing.filesystem
        self._open: dict[str, pq.ParquetFile] = {}
        footers = self._footers(listing)
        files = [
            FileInfo(name, path, size, rows)
            for name, path, size, (_, rows) in zip(
                listing.names(), listing.paths, listing.sizes, footers, strict=True
            )
        ]
        schemas = [schema for schema, _ in footers]
        super().__init__(files, schemas, columns, declared=declared, fork_safe=listing.fork_safe)
        self.by_column = self.fork_safe  # far away, all columns at once are fewer requests
        self.row_bytes = self._row_bytes()

    @classmethod
    def from_config(
        cls, config: data_pb2.DataConfig, input_path: str, columns: Sequence[str] | None
    ) -> Self:
        """Parquet carries its own types; `config.input_fields` types all-null columns."""
        return cls(input_path, columns=columns, declared=input_fields(config))

    def _footers(self, listing: Listing) -> list[tuple[pa.Schema, tuple[int, ...]]]:
        if len(listing.paths) == 1:
            return [self._footer(listing.paths[0])]
        with ThreadPoolExecutor(FOOTER_THREADS) as threads:
            return list(threads.map(self._footer, listing.paths))

    def _footer(self, path: str) -> tuple[pa.Schema, tuple[int, ...]]:
        try:
            with pq.ParquetFile(path, filesystem=self._filesystem) as file:
                meta = file.metadata
                duplicate_names(path, file.schema_arrow.names)
                groups = range(meta.num_row_groups)
                return file.schema_arrow, tuple(meta.row_group(i).num_rows for i in groups)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                file=path,
                found=f"{type(error).__name__}: {first_line(error)}",
                expected="a Parquet file with a readable footer",
                remedy="It is damaged, still being written, or not Parquet: write it again.",
            ) from error

    def _read(self, file: int, row_groups: Sequence[int], columns: Sequence[str]) -> pa.RecordBatch:
        table = self._handle(self.files[file].path).read_row_groups(
            list(row_groups), columns=list(columns), use_threads=self.use_threads
        )
        table = table.select(list(columns)).combine_chunks()
        batches = table.to_batches()
        if len(batches) == 1:
            return batches[0]
        if not batches:
            return pa.RecordBatch.from_pylist([], schema=table.schema)
        return pa.concat_batches(batches)

    def _row_bytes(self) -> int:
        """From the footer of the first file that has rows: values of a column times their width."""
        path = next(info.path for info in self.files if info.num_rows)
        groups = self._handle(path).metadata
        group = next(g for g in map(groups.row_group, range(groups.num_row_groups)) if g.num_rows)
        wanted = set(self.schema.names)
        size = 0
        for index in range(group.num_columns):
            column = group.column(index)
            if column.path_in_schema.split(".")[0] in wanted:
                size += column.num_values * WIDTHS.get(column.physical_type, TEXT_BYTES)
        return max(1, size // group.num_rows)

    def _handle(self, path: str) -> pq.ParquetFile:
        """An open file; the least recently used is closed beyond OPEN_FILES."""
        handle = self._open.pop(path, None)
        if handle is None:
            # Column chunks are fetched together: one request where storage is far away.
            far = not self.fork_safe
            handle = pq.ParquetFile(path, filesystem=self._filesystem, pre_buffer=far)
            if len(self._open) >= OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
        self._open[path] = handle
        return handle

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # handles do not cross process borders
