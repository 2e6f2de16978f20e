# SPDX-License-Identifier: Apache-2.0
"""A folder of prepared rows: `<split>/part-0.parquet` and a `manifest.json` that is written last.

The folder appears under its name only when it is complete. Its manifest says what the rows were
made of (checksums, arguments), how many there are, and which columns are keys, labels and ids, so
that baselines and reports need not know the data set.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tzgen.errors import DataError, UserError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
Manifest = dict[str, Any]


class Progress:
    """One line per step with the seconds since the start."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self._start:6.1f} s] {text}", flush=True)


def run(main: Callable[[Sequence[str] | None], None]) -> None:
    """Run a tool; what the user can put right is printed without a traceback, status 2."""
    try:
        main(None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def find_input(folder: Path, names: Sequence[str], what: str) -> Path:
    """The first of `names` in the folder, each also with .gz."""
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise DataError(
        file=str(folder),
        found="no " + " or ".join(f"{name}[.gz]" for name in names),
        expected=what,
        remedy="Point --input at the folder that holds the data set's files.",
    )


def need_columns(frame: pl.DataFrame, columns: Sequence[str], path: Path) -> None:
    """Refuse a table without the columns, or without rows."""
    for column in columns:
        if column not in frame.columns:
            raise DataError(
                file=str(path),
                column=column,
                found=f"columns {', '.join(frame.columns)}",
                expected=f"a column named {column}",
                remedy="Is this the file of that name in the original data set?",
            )
    if frame.is_empty():
        raise DataError(
            file=str(path), found="no rows", expected="data", remedy="Fetch the file again."
        )


def checksums(paths: Sequence[Path]) -> dict[str, str]:
    """File name to SHA-256."""
    digests = {}
    for path in sorted(paths):
        with path.open("rb") as stream:
            digests[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def arguments_of(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that decide what the rows hold: not where they come from or go to."""
    where = {"input", "output", "cache", "overwrite"}
    return {name: value for name, value in sorted(vars(args).items()) if name not in where}


def is_current(output: Path, tool: str, inputs: Mapping[str, str], args: Mapping[str, Any]) -> bool:
    """Whether the folder already holds what this run would write."""
    if not (output / MANIFEST).is_file():
        return False
    found = json.loads((output / MANIFEST).read_text())
    wanted = {"schema_version": SCHEMA_VERSION, "tool": tool}
    wanted |= {"input": dict(inputs), "arguments": dict(args)}
    return all(found.get(key) == value for key, value in wanted.items())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared folder."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            file=str(path),
            found="no such file",
            expected="the manifest of prepared rows",
            remedy="Run tools/prepare_movielens.py or tools/prepare_kuairand.py first.",
        )
    manifest: Manifest = json.loads(path.read_text())
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            file=str(path),
            found=f"schema_version {manifest.get('schema_version')}",
            expected=str(SCHEMA_VERSION),
            remedy="Prepare the rows again with this version of the tool.",
        )
    return manifest


@contextlib.contextmanager
def new_folder(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write into; it takes the place of `output` when the block ends without error."""
    if output.exists() and not overwrite:
        raise UserError(
            f"--output {output} exists and holds something else; expected a new folder, or rows "
            "of the same input and arguments. Remove it, name another, or add --overwrite."
        )
    if output.exists() and any(output.iterdir()) and not (output / MANIFEST).is_file():
        raise UserError(
            f"--output {output} has no {MANIFEST}, so these tools did not write it; "
            "--overwrite replaces prepared rows only. Name another folder."
        )
    partial = output.with_name(f"{output.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_split(folder: Path, split: str, rows: pa.Table, *, row_group_rows: int) -> None:
    """Write one split as one file of small row groups, the unit that training shuffles by."""
    (folder / split).mkdir()
    path = folder / split / "part-0.parquet"
    pq.write_table(rows, path, row_group_size=row_group_rows, compression="zstd")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """The commit mark: flushed to disk before the folder is renamed."""
    with (folder / MANIFEST).open("w") as stream:
        json.dump({"schema_version": SCHEMA_VERSION, **manifest}, stream, indent=2)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_candidates(folder: Path, split: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """One row per candidate of a split: row columns repeated, `cand__` columns unnested."""
    files = sorted((folder / split).glob("*.parquet"))
    if not files:
        raise DataError(
            file=str(folder / split),
            found="no *.parquet",
            expected=f"the rows of split {split}",
            remedy=f"The folder has: {', '.join(sorted(p.name for p in folder.iterdir()))}.",
        )
    names = pq.read_schema(files[0]).names
    for column in columns or ():
        if column not in names:
            raise DataError(
                file=str(files[0]),
                column=column,
                found=f"columns {', '.join(names)}",
                expected=f"a column named {column}",
                remedy="Prepare the rows again, or name an existing column.",
            )
    wanted = list(columns) if columns else [n for n in names if not n.startswith("uih__")]
    frame = pl.read_parquet(files, columns=wanted)
    return frame.explode([name for name in wanted if name.startswith("cand__")])


def label_of(task: Mapping[str, Any]) -> pl.Expr:
    """The label of a manifest's task as float64: a value, or whether any bit of the mask is set."""
    column = pl.col(task["column"])
    if "bitmask" not in task:
        return column.cast(pl.Float64)
    return ((column & task["bitmask"]) != 0).cast(pl.Float64)


def describe(rows: pa.Table, tasks: Mapping[str, Any], train_users: pl.Series | None) -> Manifest:
    """Counts of a split for the manifest."""
    labels = sorted({str(task["column"]) for task in tasks.values()})
    frame = pl.from_arrow(rows.select(["user_id", "request_time", "uih__timestamp", *labels]))
    assert isinstance(frame, pl.DataFrame)
    history = frame["uih__timestamp"].list.len()
    candidates = frame.select(labels).explode(labels)
    users = frame["user_id"].unique()
    known = users if train_users is None else train_users
    return {
        "rows": frame.height,
        "candidates": candidates.height,
        "users": users.len(),
        "users_not_in_train": users.len() - int(users.is_in(known.implode()).sum()),
        "rows_without_history": int((history == 0).sum()),
        "mean_history": round(float(history.mean() or 0.0), 2),  # type: ignore[arg-type]
        "first_request": frame["request_time"].min(),
        "last_request": frame["request_time"].max(),
        "mean_label": {
            name: round(float(candidates.select(label_of(task).mean()).item()), 5)
            for name, task in tasks.items()
        },
    }
