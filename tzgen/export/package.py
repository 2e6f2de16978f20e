# SPDX-License-Identifier: Apache-2.0
"""An exported package: a directory that is whole or absent, readable without the trainer.

manifest.json            written last: the commit mark, with checksums and where it came from
pipeline.config          features, groups and model, for parsing rows and for EAGER
tables.safetensors       embedding tables by table name, full tensors
dense.safetensors        all other weights, one file for all graphs
graphs/full.pt2          compiled graphs of format AOTI (full; encode, score, append of models that
                         have them) without weights, and tensors that their code writes down;
                         none for EAGER
semantic_ids/            the generation that a generator was trained on
native/*.so              the native op library, where the model runs on it
replay.safetensors       groups and outputs of the batch that proved the package equal to eager
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tzgen.errors import UserError

SCHEMA_VERSION = 1
FORMATS = ("AOTI", "EAGER")


@dataclass(frozen=True)
class Package:
    """An opened package directory."""

    path: Path
    manifest: dict[str, Any]

    @property
    def format(self) -> str:
        return self.manifest["format"]

    @property
    def config_path(self) -> Path:
        return self.path / "pipeline.config"

    @property
    def graph_names(self) -> tuple[str, ...]:
        return tuple(self.manifest.get("graphs", ("full",)))

    def graph(self, name: str) -> Path:
        return self.path / "graphs" / f"{name}.pt2"


def open_package(path: Path) -> Package:
    """Open and check a package.

    Raises UserError naming the path when it is absent, uncommitted, from another schema, or when a
    file differs from its checksum.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path} is no exported package (no manifest.json): run `python -m tzgen.export` first"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}/manifest.json is damaged ({error}): export again") from None
    if manifest.get("schema_version") != SCHEMA_VERSION or manifest.get("format") not in FORMATS:
        raise UserError(
            f"{path}: schema_version {manifest.get('schema_version')}, format "
            f"{manifest.get('format')!r}; this version reads {SCHEMA_VERSION} with "
            f"{', '.join(FORMATS)}: export again"
        )
    for name, digest in manifest["checksums"].items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{file} is missing, though the manifest lists it: export again")
        if checksum(file) != digest:
            raise UserError(f"{file} is damaged: its checksum is not the manifest's: export again")
    return Package(path, manifest)


@contextmanager
def staged(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes it when the block ends well, and vanishes else.

    Who may read the folder may read its files, which safetensors leaves to their owner alone.
    Raises UserError when `path` holds something that is not a package, or one and not `overwrite`.
    """
    if path.exists() and any(path.iterdir()):
        if not (path / "manifest.json").exists():
            raise UserError(f"{path} holds files that are no package: give an empty export_dir")
        if not overwrite:
            raise UserError(
                f"{path} already holds a package: give another export_dir or --overwrite"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".writing-{path.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                file.chmod(temporary.stat().st_mode & 0o666)
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        if path.exists():
            retired = path.parent / f".removing-{path.name}"
            shutil.rmtree(retired, ignore_errors=True)
            path.replace(retired)
            temporary.replace(path)
            shutil.rmtree(retired)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_manifest(folder: Path, body: dict[str, Any]) -> None:
    """Write the manifest over all files that are there. Call it last."""
    checksums = {
        file.relative_to(folder).as_posix(): checksum(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    text = json.dumps({"schema_version": SCHEMA_VERSION, **body, "checksums": checksums}, indent=1)
    (folder / "manifest.json").write_text(text, encoding="utf-8")


def checksum(file: Path) -> str:
    """SHA-256 of a file, as hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
