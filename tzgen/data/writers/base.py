# SPDX-License-Identifier: Apache-2.0
"""Output folders that are there whole or not at all.

Parts are written to a hidden folder beside the target, fsynced, and renamed with it on commit; then
comes _manifest.json, the mark of a complete folder. Object stores have no rename: there the parts
are written in place and the manifest alone is the commit.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import pyarrow as pa

from tzgen.data.readers.paths import is_local, open_filesystem
from tzgen.errors import UserError
from tzgen.registry import Registry

MANIFEST = "_manifest.json"  # readers of Parquet folders skip names that start with _
SCHEMA_VERSION = 1
Barrier = Callable[[], None]


def alone() -> None:
    """The barrier of a single process."""


class HashingFile(io.RawIOBase):
    """Passes bytes on to `sink` and hashes them on the way."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink, self._hash, self.size = sink, hashlib.sha256(), 0
        self._discarding = False

    def discard(self) -> None:
        """Let what still comes go nowhere: formats insist on writing an end."""
        self._discarding = True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self._discarding:
            return len(view)
        self._hash.update(view)
        self._sink.write(view)
        self.size += len(view)
        return len(view)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def sha256(self) -> str:
        return self._hash.hexdigest()


class Writer(ABC):
    """write(rows) any number of times, then commit() or abort(); as a context, an error aborts.

    All batches must have the schema of the first. commit() and the constructor are collective.
    """

    suffix: str

    def __init__(
        self, path: str, *, rank: int, world_size: int, barrier: Barrier, overwrite: bool
    ) -> None:
        self._filesystem, folder = open_filesystem(path)
        self._target = folder.rstrip("/")
        self._local = is_local(self._filesystem)
        self._rank, self._world_size, self._barrier = rank, world_size, barrier
        self._check_target(path, overwrite)
        head, tail = posixpath.split(self._target)
        self._folder = posixpath.join(head, f".{tail}.writing") if self._local else self._target
        if rank == 0:
            self._clear(self._folder)
            self._filesystem.makedirs(self._folder, exist_ok=True)
        barrier()  # nobody writes before everybody has looked, and the folder is there
        self._part = posixpath.join(self._folder, f"part-{rank}{self.suffix}")
        self._sink: BinaryIO = self._filesystem.open(self._part, "wb")
        self._file = HashingFile(self._sink)
        self._schema: pa.Schema | None = None
        self._rows = 0

    @abstractmethod
    def _begin(self, file: HashingFile, schema: pa.Schema) -> None:
        """Start a part of this schema."""

    @abstractmethod
    def _write(self, rows: pa.RecordBatch) -> None:
        """Append rows of the schema given to `_begin`."""

    @abstractmethod
    def _end(self) -> None:
        """Write what the format needs at the end; the file is closed by the caller."""

    def write(self, rows: pa.RecordBatch) -> None:
        if self._schema is None:
            self._begin(self._file, rows.schema)
            self._schema = rows.schema
        if not rows.schema.equals(self._schema):
            raise ValueError(f"rows of schema {rows.schema} after rows of {self._schema}")
        self._write(rows)
        self._rows += rows.num_rows

    def commit(self, extra: Mapping[str, Any] | None = None) -> None:
        """Finish the part; when all ranks have, publish the folder. `extra` joins the manifest."""
        if self._schema is not None:
            self._end()
        self._close()
        note = {
            "file": posixpath.basename(self._part),
            "rows": self._rows,
            "bytes": self._file.size,
            "sha256": self._file.sha256(),
            "columns": None if self._schema is None else _columns(self._schema),
        }
        self._put(posixpath.join(self._folder, f".part-{self._rank}.json"), note)
        self._barrier()
        if self._rank == 0:
            self._publish(dict(extra or {}))
        self._barrier()

    def abort(self) -> None:
        """Drop this rank's part; on rank 0 the whole unfinished folder."""
        self._file.discard()
        if self._schema is not None:
            self._end()
        self._close()
        if self._rank == 0 and self._local:
            self._clear(self._folder)
        else:
            self._remove(self._part)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.abort()

    def _check_target(self, path: str, overwrite: bool) -> None:
        if overwrite or not self._filesystem.exists(self._target):
            return
        if self._filesystem.isfile(self._target) or self._filesystem.ls(self._target, detail=False):
            raise UserError(
                f"output {path}: already holds something; expected nothing there. Name another "
                "folder, or allow overwriting."
            )

    def _publish(self, manifest: dict[str, Any]) -> None:
        parts = []
        for rank in range(self._world_size):
            note = posixpath.join(self._folder, f".part-{rank}.json")
            part = json.loads(self._filesystem.cat_file(note))
            self._filesystem.rm_file(note)
            if part["columns"] is None:  # a rank without rows leaves no file
                self._remove(posixpath.join(self._folder, part["file"]))
            else:
                parts.append(part)
        columns = parts[0].pop("columns") if parts else []
        for part in parts:
            part.pop("columns", None)
        if self._local:
            self._replace()
        manifest |= {
            "schema_version": SCHEMA_VERSION,
            "rows": sum(part["rows"] for part in parts),
            "columns": columns,
            "parts": parts,
        }
        self._put(posixpath.join(self._target, MANIFEST), manifest)

    def _replace(self) -> None:
        """The finished folder takes the target's place; what was there goes last."""
        old = f"{self._folder}.old"
        self._clear(old)
        if self._filesystem.exists(self._target):
            Path(self._target).rename(old)
        Path(self._folder).rename(self._target)
        _sync(posixpath.dirname(self._target))
        self._clear(old)

    def _put(self, path: str, content: dict[str, Any]) -> None:
        """A small JSON file, whole or absent."""
        data = json.dumps(content, indent=1).encode()
        if not self._local:
            self._filesystem.pipe_file(path, data)
            return
        with Path(f"{path}.tmp").open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(f"{path}.tmp").replace(path)
        _sync(posixpath.dirname(path))

    def _close(self) -> None:
        if self._sink.closed:
            return
        if self._local:
            self._sink.flush()
            os.fsync(self._sink.fileno())
        self._sink.close()

    def _clear(self, folder: str) -> None:
        if self._filesystem.exists(folder):
            self._filesystem.rm(folder, recursive=True)

    def _remove(self, path: str) -> None:
        if self._filesystem.exists(path):
            self._filesystem.rm_file(path)


def _columns(schema: pa.Schema) -> list[dict[str, str]]:
    return [{"name": field.name, "type": str(field.type)} for field in schema]


def _sync(folder: str) -> None:
    """A rename is on disk only when the folder that lists it is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


WRITERS: Registry[Writer] = Registry("writer_type")
