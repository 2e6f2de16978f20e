# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: written under a temporary name, fsynced, renamed; the manifest is the commit mark.

    model_dir/model.ckpt-<step>/
        model/       torch.distributed.checkpoint: dense weights and tables, any number of ranks
        optimizer/   the same for dense and sparse optimizer states and averages of weights
        trainer.json where the run stands: reader position, best metric, early stopping
        pipeline.config
        manifest.json  written last: config hash, data fingerprint, versions, checksums, metrics

A folder without a readable manifest does not exist for any reader here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from tzgen.errors import UserError
from tzgen.train.environment import Env
from tzgen.train.quiet import quiet

SCHEMA_VERSION = 1
_NAME = re.compile(r"model\.ckpt-(\d+)")
_TEMPORARY = ".writing-"
_TRASH = ".removing-"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint folder."""

    path: Path
    step: int
    manifest: dict[str, Any]

    @property
    def trainer(self) -> dict[str, Any]:
        return json.loads((self.path / "trainer.json").read_text(encoding="utf-8"))

    @property
    def config_path(self) -> Path:
        return self.path / "pipeline.config"


def save(
    model_dir: Path,
    step: int,
    *,
    env: Env,
    model: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    trainer: Mapping[str, Any],
    config_text: str,
    manifest: Mapping[str, Any],
) -> Path:
    """Write one checkpoint with all ranks; its folder. Nothing is visible until it is whole."""
    final = model_dir / f"model.ckpt-{step}"
    temporary = model_dir / f"{_TEMPORARY}{final.name}"
    if env.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    env.barrier()
    for part, state in (("model", model), ("optimizer", optimizer)):
        _save_state(state, temporary / part)
    env.barrier()
    if env.is_main:
        write_text(temporary / "trainer.json", json.dumps(trainer, indent=1))
        write_text(temporary / "pipeline.config", config_text)
        checksums = {
            str(path.relative_to(temporary)): _digest(path)
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        body = {"schema_version": SCHEMA_VERSION, "step": step, **manifest, "checksums": checksums}
        write_text(temporary / "manifest.json", json.dumps(body, indent=1))
        for folder in (temporary / "model", temporary / "optimizer", temporary):
            _fsync(folder)
        if final.exists():
            remove(final)
        temporary.replace(final)
        _fsync(model_dir)
    env.barrier()
    return final


def committed(model_dir: Path) -> list[Checkpoint]:
    """All whole checkpoints, oldest step first."""
    found = []
    for path in model_dir.glob("model.ckpt-*"):
        match = _NAME.fullmatch(path.name)
        manifest = _read_manifest(path) if match else None
        if match and manifest is not None:
            found.append(Checkpoint(path, int(match.group(1)), manifest))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def latest(model_dir: Path) -> Checkpoint | None:
    checkpoints = committed(model_dir)
    return checkpoints[-1] if checkpoints else None


def open_checkpoint(path: Path) -> Checkpoint:
    """A given checkpoint folder, or the latest one of a model_dir.

    Raises UserError when there is none or it was never committed.
    """
    if path.is_dir() and not _NAME.fullmatch(path.name):
        found = latest(path)
        if found is None:
            raise UserError(
                f"{path} holds no committed checkpoint (model.ckpt-<step>/manifest.json)"
            )
        return found
    match, manifest = _NAME.fullmatch(path.name), _read_manifest(path)
    if not path.is_dir():
        raise UserError(
            f"checkpoint {path} does not exist; give a model_dir or a model.ckpt-<step>"
        )
    if match is None or manifest is None:
        raise UserError(
            f"{path} has no readable manifest.json: it was never committed; use another"
        )
    return Checkpoint(path, int(match.group(1)), manifest)


def load_state(target: Mapping[str, Any], folder: Path) -> None:
    """Fill the tensors of `target` in place from a checkpoint part, whatever its number of ranks.

    Raises UserError that names tensors which are absent or have another shape.
    """
    if not target:
        return
    stored = stored_tensors(folder)
    missing = sorted(set(target) - set(stored))
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} tensors of this model, first {missing[:3]}; "
            f"it has {len(stored)}. Use the config the checkpoint was written with."
        )
    wrong = [
        f"{name}: checkpoint {tuple(stored[name][0])}, model {tuple(tensor.size())}"
        for name, tensor in target.items()
        if tuple(stored[name][0]) != tuple(tensor.size())
    ]
    if wrong:
        raise UserError(
            f"{folder}: {len(wrong)} tensors have another shape: {'; '.join(wrong[:3])}"
        )
    reader, alone = FileSystemReader(str(folder)), not dist.is_initialized()
    with quiet():
        dcp.load(dict(target), storage_reader=reader, no_dist=alone)


def stored_tensors(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Names, full shapes and dtypes of a checkpoint part; empty when it holds nothing."""
    if not (folder / ".metadata").exists():
        return {}
    metadata = FileSystemReader(str(folder)).read_metadata()
    return {
        name: (entry.size, entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def retain(model_dir: Path, *, keep: int, protected: set[int]) -> None:
    """Remove the oldest checkpoints above `keep` (0 = keep all), never the `protected` steps."""
    if keep > 0:
        for checkpoint in committed(model_dir)[:-keep]:
            if checkpoint.step not in protected:
                remove(checkpoint.path)


def sweep(model_dir: Path) -> None:
    """Remove what killed runs left half-written or half-removed."""
    for prefix in (_TEMPORARY, _TRASH):
        for path in model_dir.glob(f"{prefix}*"):
            shutil.rmtree(path, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a checkpoint so that no half of it can be taken for a whole: renamed first."""
    trash = path.with_name(f"{_TRASH}{path.name}")
    shutil.rmtree(trash, ignore_errors=True)
    path.replace(trash)
    shutil.rmtree(trash)


def verify(checkpoint: Checkpoint) -> None:
    """Compare every file with the manifest's checksum. Raises UserError naming the damaged file."""
    for name, digest in checkpoint.manifest["checksums"].items():
        path = checkpoint.path / name
        if not path.exists():
            raise UserError(
                f"{path} is missing, though the manifest lists it; restore or use another"
            )
        if _digest(path) != digest:
            raise UserError(f"{path} is damaged: its checksum is not the manifest's; use another")


def write_text(path: Path, text: str) -> None:
    """Write and fsync a small file."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _save_state(state: Mapping[str, Any], folder: Path) -> None:
    if state:
        writer, alone = FileSystemWriter(str(folder), sync_files=True), not dist.is_initialized()
        with quiet():
            dcp.save(dict(state), storage_writer=writer, no_dist=alone)
    else:
        folder.mkdir(exist_ok=True)


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fsync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
