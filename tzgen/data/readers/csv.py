# SPDX-License-Identifier: Apache-2.0
"""Delimited text, cut at line ends into blocks that play the part of row groups.

Opening a file counts its lines once, so any number of files can be dealt to any number of ranks and
workers, and an epoch can be resumed anywhere. A compressed file is one block: it cannot be entered
in the middle. Cells hold scalars; lists are strings that features split (`separator`,
`sequence_delim`).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from tzgen.data.readers.base import READERS, FileInfo, FileReader, duplicate_names, first_line
from tzgen.data.readers.paths import list_files
from tzgen.data.readers.types import input_fields
from tzgen.errors import DataError, UserError
from tzgen.protos import data_pb2

SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
BLOCK_BYTES = 8 << 20
NEWLINE, RETURN = 10, 13


@dataclass(frozen=True)
class _Blocks:
    """Where the blocks of one file begin and end (bytes), their rows, and the file's columns."""

    names: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]


@READERS.register("CsvDataset")
class CsvDataset(FileReader):
    """Rows of text files. Types are those declared, else inferred from the first block."""

    read_remedy = (
        "Check delimiter and with_header, or declare the column's type in data_config.input_fields."
    )

    def __init__(
        self,
        input_path: str,
        *,
        columns: Sequence[str] | None = None,
        fields: Mapping[str, pa.DataType | None] | None = None,
        delimiter: str = ",",
        with_header: bool = False,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        fields = fields or {}
        _check_options(fields, delimiter, with_header)
        self._delimiter, self._block_bytes = delimiter, block_bytes
        listing = list_files(input_path, SUFFIXES)
        self._filesystem = listing.filesystem
        header_names = None if with_header else tuple(fields)
        self._blocks = [self._index(path, header_names) for path in listing.paths]
        files = [
            FileInfo(name, path, size, blocks.rows)
            for name, path, size, blocks in zip(
                listing.names(), listing.paths, listing.sizes, self._blocks, strict=True
            )
        ]
        self._types = {name: kind for name, kind in fields.items() if kind is not None}
        self._types |= self._inferred(files)
        schemas = [
            pa.schema([(name, self._types.get(name, pa.null())) for name in blocks.names])
            for blocks in self._blocks
        ]
        super().__init__(files, schemas, columns, declared=fields, fork_safe=listing.fork_safe)
        self.row_bytes = max(1, sum(info.size for info in files) // self.num_rows)

    @classmethod
    def from_config(
        cls, config: data_pb2.DataConfig, input_path: str, columns: Sequence[str] | None
    ) -> Self:
        """`delimiter`, `with_header`, `input_fields` or `input_fields_str` of DataConfig."""
        return cls(
            input_path,
            columns=columns,
            fields=input_fields(config),
            delimiter=config.delimiter,
            with_header=config.with_header,
        )

    def _inferred(self, files: Sequence[FileInfo]) -> dict[str, pa.DataType]:
        """Types of the columns nobody declared, from the first block that has rows."""
        found: dict[str, pa.DataType] = {}
        for info, blocks in zip(files, self._blocks, strict=True):
            missing = [name for name in blocks.names if name not in self._types | found]
            if missing and any(blocks.rows):
                group = next(i for i, rows in enumerate(blocks.rows) if rows)
                with _text_errors(info.path):
                    rows = self._convert(info.path, blocks, group, missing, self._types)
                found |= dict(zip(rows.schema.names, rows.schema.types, strict=True))
        return found

    def _index(self, path: str, header_names: tuple[str, ...] | None) -> _Blocks:
        """Count the lines of a file and cut it into blocks of whole lines."""
        with _text_errors(path), self._filesystem.open_input_stream(path) as stream:
            compressed = path.endswith(COMPRESSED)
            chunks = [stream.read()] if compressed else _whole_lines(stream, self._block_bytes)
            spans, rows, start = [], [], 0
            names = header_names
            for chunk in chunks:
                data, skip = chunk, 0
                if names is None:
                    names, skip = self._header(path, bytes(chunk))
                    data = chunk[skip:]
                spans.append((start + skip, start + len(chunk)))
                rows.append(count_lines(data))
                start += len(chunk)
        if names is None:
            raise DataError(
                file=path,
                found="an empty file",
                expected="a header line (data_config.with_header is true)",
                remedy="Leave the file out, or write its header.",
            )
        duplicate_names(path, names)
        return _Blocks(names, tuple(spans), tuple(rows))

    def _header(self, path: str, chunk: bytes) -> tuple[tuple[str, ...], int]:
        end = chunk.find(b"\n") + 1 or len(chunk)
        try:
            line = chunk[:end].decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(
                file=path,
                found=f"a header that is not UTF-8: {error.reason}",
                expected="UTF-8 text",
                remedy="Convert the file.",
            ) from error
        return tuple(next(csv.reader([line], delimiter=self._delimiter))), end

    def _read(self, file: int, row_groups: Sequence[int], columns: Sequence[str]) -> pa.RecordBatch:
        path, blocks = self.files[file].path, self._blocks[file]
        return pa.concat_batches(
            [self._convert(path, blocks, group, columns, self._types) for group in row_groups]
        )

    def _convert(
        self,
        path: str,
        blocks: _Blocks,
        group: int,
        columns: Sequence[str],
        types: Mapping[str, pa.DataType],
    ) -> pa.RecordBatch:
        start, end = blocks.spans[group]
        if path.endswith(COMPRESSED):
            with self._filesystem.open_input_stream(path) as stream:
                data = stream.read()[start:end]
        else:
            with self._filesystem.open_input_file(path) as source:
                data = source.read_at(end - start, start)
        if blocks.rows[group] == 0:
            schema = pa.schema([(name, types.get(name, pa.null())) for name in columns])
            return pa.RecordBatch.from_pylist([], schema=schema)
        table = pacsv.read_csv(
            pa.BufferReader(data),
            read_options=pacsv.ReadOptions(
                column_names=list(blocks.names),
                use_threads=self.use_threads,
                block_size=len(data) + 1,
            ),
            parse_options=pacsv.ParseOptions(delimiter=self._delimiter),
            convert_options=pacsv.ConvertOptions(
                column_types={name: types[name] for name in columns if name in types},
                include_columns=list(columns),
            ),
        )
        return pa.concat_batches(table.combine_chunks().to_batches())


def _check_options(
    fields: Mapping[str, pa.DataType | None], delimiter: str, with_header: bool
) -> None:
    if len(delimiter.encode()) != 1:
        raise UserError(f"data_config.delimiter: found {delimiter!r}; expected one ASCII letter.")
    if not with_header and not fields:
        raise UserError(
            "data_config: CsvDataset without a header does not know its columns. Set with_header, "
            "or list all columns in order in input_fields."
        )
    for name, kind in fields.items():
        if kind is not None and pa.types.is_nested(kind):
            raise UserError(
                f"data_config.input_fields: column {name!r} is declared {kind}, but a text cell "
                "holds a scalar. Declare STRING and let the feature's separator split it."
            )


def _whole_lines(stream: pa.NativeFile, block_bytes: int) -> Iterator[bytes]:
    """The stream cut at line ends into pieces of about block_bytes."""
    rest = b""
    while chunk := stream.read(block_bytes):
        cut = chunk.rfind(b"\n") + 1
        if cut:
            yield rest + chunk[:cut]
            rest = chunk[cut:]
        else:
            rest += chunk
    if rest:
        yield rest


def count_lines(data: bytes) -> int:
    """Lines that hold something: the text reader leaves out empty ones."""
    raw = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(raw == NEWLINE)
    if len(raw) and (not len(ends) or ends[-1] != len(raw) - 1):
        ends = np.append(ends, len(raw))
    lengths = np.diff(ends, prepend=-1) - 1
    last = raw[np.maximum(ends - 1, 0)] if len(raw) else raw
    return int(np.count_nonzero(lengths - ((lengths > 0) & (last == RETURN)) > 0))


@contextmanager
def _text_errors(path: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        found = re.sub(r"\s+", " ", first_line(error))
        raise DataError(
            file=path,
            found=f"{type(error).__name__}: {found}",
            expected="delimited UTF-8 text",
            remedy=CsvDataset.read_remedy,
        ) from error
