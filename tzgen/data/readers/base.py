# SPDX-License-Identifier: Apache-2.0
"""What a reader is: files cut into row groups, each readable on its own.

A row group is the unit of reading; everything above (order, windows, batches) is arithmetic over
the row counts known here. Arrow stays Arrow: no value is decoded beyond what the format does.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import numpy as np
import pyarrow as pa

from tzgen.data.readers.types import common_type, conform, plain
from tzgen.errors import DataError
from tzgen.protos import data_pb2
from tzgen.registry import Registry


@dataclass(frozen=True)
class FileInfo:
    """One file: name relative to the folder that all files share, full path, bytes, rows."""

    name: str
    path: str
    size: int
    group_rows: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        return sum(self.group_rows)


class Reader(Protocol):
    """Random access to rows of known number. Implementations are picklable."""

    files: tuple[FileInfo, ...]
    schema: pa.Schema
    """The columns that are read, in the order asked for."""
    use_threads: bool
    """Decode columns in parallel; off by default, because loader workers are already parallel."""
    fork_safe: bool
    """False for remote storage: client threads do not survive a fork, so workers are spawned."""
    by_column: bool
    """Whether reading one column after the other costs no more than all at once."""
    row_bytes: int
    """About how much memory a decoded row takes."""

    @property
    def num_rows(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def read_rows(
        self, file: int, row_group: int, columns: Sequence[str] | None = None
    ) -> pa.RecordBatch: ...

    def read_groups(
        self, file: int, row_groups: Sequence[int], columns: Sequence[str]
    ) -> pa.RecordBatch: ...


class FileReader(ABC):
    """Shared by the file formats: schema agreement, fingerprint, errors that name the place."""

    use_threads = False
    by_column = False
    row_bytes: int

    def __init__(
        self,
        files: Sequence[FileInfo],
        schemas: Sequence[pa.Schema],
        columns: Sequence[str] | None,
        *,
        declared: Mapping[str, pa.DataType | None],
        fork_safe: bool,
    ) -> None:
        self.files = tuple(files)
        self.fork_safe = fork_safe
        self.file_schema = with_declared(agreed_schema(files, schemas), declared, files[0].path)
        if self.num_rows == 0:
            raise DataError(
                file=self.files[0].path,
                found=f"0 rows in {len(self.files)} file(s)",
                expected="at least one row",
                remedy="Check the job that wrote them.",
            )
        names = self.file_schema.names if columns is None else list(dict.fromkeys(columns))
        for info, schema in zip(self.files, schemas, strict=True):
            require_columns(info.path, schema.names, names)
        self.schema = pa.schema([self.file_schema.field(name) for name in names])

    @classmethod
    @abstractmethod
    def from_config(
        cls, config: data_pb2.DataConfig, input_path: str, columns: Sequence[str] | None
    ) -> Self:
        """Built from the fields of DataConfig that concern this format."""

    @abstractmethod
    def _read(self, file: int, row_groups: Sequence[int], columns: Sequence[str]) -> pa.RecordBatch:
        """Decode row groups one after the other; may raise what Arrow raises."""

    @property
    def num_rows(self) -> int:
        return sum(info.num_rows for info in self.files)

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the data: relative names, sizes, row counts, schema. Not of the machine."""
        files = [[info.name, info.size, list(info.group_rows)] for info in self.files]
        schema = [[field.name, str(field.type)] for field in self.file_schema]
        text = json.dumps([files, schema], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def read_rows(
        self, file: int, row_group: int, columns: Sequence[str] | None = None
    ) -> pa.RecordBatch:
        """All rows of one row group; `columns` None means those of `schema`."""
        names = self.schema.names if columns is None else list(columns)
        path, expected = self.files[file].path, self.files[file].group_rows[row_group]
        require_columns(path, self.file_schema.names, names)
        try:
            rows = self._decode(file, [row_group], names)
        except pa.ArrowMemoryError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise self._located(error, file, row_group, names) from error
        if rows.num_rows != expected:
            raise DataError(
                file=path,
                row_group=row_group,
                found=f"{rows.num_rows} rows",
                expected=f"{expected} rows, as counted when it was opened",
                remedy="The file changed, or text cells contain line breaks: write it as Parquet.",
            )
        return rows

    def read_groups(
        self, file: int, row_groups: Sequence[int], columns: Sequence[str]
    ) -> pa.RecordBatch:
        """All rows of several row groups of a file, decoded into one piece of memory."""
        try:
            rows = self._decode(file, row_groups, columns)
            if rows.num_rows == sum(self.files[file].group_rows[i] for i in row_groups):
                return rows
        except pa.ArrowMemoryError:
            raise
        except (pa.ArrowException, OSError):
            pass  # one by one, so that the error names its row group
        return pa.concat_batches([self.read_rows(file, index, columns) for index in row_groups])

    read_remedy = "Write the file again, or leave it out of the input path."

    def _decode(self, file: int, row_groups: Sequence[int], names: Sequence[str]) -> pa.RecordBatch:
        schema = pa.schema([self.file_schema.field(name) for name in names])
        return conform(self._read(file, row_groups, names), schema)

    def _located(
        self, error: BaseException, file: int, row_group: int, names: Sequence[str]
    ) -> DataError:
        """Arrow's error as one that names the place, and the column if one is guilty."""
        guilty = [name for name in names if not self._readable(file, row_group, name)]
        # All fail when, for example, the file is gone: then none of them is to blame.
        column = guilty[0] if 0 < len(guilty) < max(len(names), 2) else None
        of_type = "" if column is None else f" of {self.file_schema.field(column).type}"
        return DataError(
            file=self.files[file].path,
            row_group=row_group,
            column=column,
            found=f"{type(error).__name__}: {first_line(error)}",
            expected=f"a readable row group{of_type}",
            remedy=self.read_remedy,
        )

    def _readable(self, file: int, row_group: int, name: str) -> bool:
        try:
            self._decode(file, [row_group], [name])
        except (pa.ArrowException, OSError):
            return False
        return True


class RowGroups:
    """Row groups of all files, flat: which file, which group of it, rows, first row in the file."""

    def __init__(self, files: Sequence[FileInfo]) -> None:
        counts = [len(info.group_rows) for info in files]
        self.file = np.repeat(np.arange(len(files), dtype=np.int32), counts)
        self.index = np.concatenate([np.arange(count) for count in counts] or [np.zeros(0, int)])
        self.rows = np.array([n for info in files for n in info.group_rows], dtype=np.int64)
        ends = np.cumsum(self.rows)
        file_ends = np.cumsum([info.num_rows for info in files])
        file_starts = np.concatenate([[0], file_ends])[:-1].astype(np.int64)
        self.first_row = ends - self.rows - file_starts[self.file]


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def require_columns(path: str, present: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse a missing column, naming the nearest one there is."""
    have = set(present)
    for name in wanted:
        if name not in have:
            near = difflib.get_close_matches(name, present, n=1)
            raise DataError(
                file=path,
                column=name,
                found=f"no such column among {', '.join(sorted(have)) or 'none'}",
                expected=f"a column {name!r}",
                remedy=f"Did you mean {near[0]!r}?" if near else "Fix the config or the data.",
            )


def agreed_schema(files: Sequence[FileInfo], schemas: Sequence[pa.Schema]) -> pa.Schema:
    """One type for each column that all files have; disagreement names both files."""
    fields = []
    for field in schemas[0]:
        agreed, where = field.type, files[0].path
        for info, schema in zip(files, schemas, strict=True):
            index = schema.get_field_index(field.name)
            if index < 0:
                continue  # matters only if the column is read: require_columns says so then
            found = schema.field(index).type
            common = common_type(agreed, found)
            if common is None:
                raise DataError(
                    file=info.path,
                    column=field.name,
                    found=str(found),
                    expected=f"{agreed}, as in {where}",
                    remedy="Write all files with one schema.",
                )
            if pa.types.is_null(agreed):
                where = info.path
            agreed = common
        fields.append(pa.field(field.name, agreed))
    return pa.schema(fields)


def with_declared(
    schema: pa.Schema, declared: Mapping[str, pa.DataType | None], path: str
) -> pa.Schema:
    """`schema`, with the types that data_config.input_fields says where they hold every value: of
    all-null columns, and of narrower numbers. Contradictions are refused."""
    fields = []
    for field in schema:
        kind = declared.get(field.name) or field.type
        common = common_type(field.type, kind)
        if common is None or plain(common) != plain(kind):  # narrower than the data: lossy
            raise DataError(
                file=path,
                column=field.name,
                found=str(field.type),
                expected=f"{kind}, as data_config.input_fields declares",
                remedy="Correct the declaration, or the data.",
            )
        fields.append(pa.field(field.name, common))
    return pa.schema(fields)


def duplicate_names(path: str, names: Sequence[str]) -> None:
    """Refuse a file in which two columns share a name: which one is meant cannot be told."""
    for name in dict.fromkeys(names):
        if list(names).count(name) > 1:
            raise DataError(
                file=path,
                column=name,
                found=f"{list(names).count(name)} columns of that name",
                expected="one",
                remedy="Rename or drop the others.",
            )


READERS: Registry[FileReader] = Registry("dataset_type")
