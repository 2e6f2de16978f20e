# SPDX-License-Identifier: Apache-2.0
"""Packages carry the native library where the model runs on it, and load what fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from export.export_world import batch_of, config_of, pipeline_of

from tzgen.export import native as carrying
from tzgen.export.loaded import load_package
from tzgen.export.package import Package, open_package
from tzgen.export.writing import export_package


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for a built library of this machine; loading is only written down."""
    carrying.native.available()  # the process's own library, before another stands for it
    path = tmp_path / "tzgen_native-0123.so"
    path.write_bytes(b"machine code")
    monkeypatch.setattr(carrying.native, "library_path", lambda: path)
    monkeypatch.setattr(carrying, "library_name", lambda: path.name)
    monkeypatch.setattr(carrying, "chosen_kernel", lambda *arguments: "CPU_NATIVE")
    return path


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    seen: list[Path] = []
    monkeypatch.setattr(carrying.native, "load", lambda path: seen.append(path) or True)
    return seen


def exported(name: str, folder: Path) -> Path:
    config = config_of(name)
    pipeline = pipeline_of(config)
    return export_package(pipeline, batch_of(config, pipeline), folder, provenance={})


def test_the_library_travels_with_its_checksum(
    tmp_path: Path, library: Path, loads: list[Path]
) -> None:
    path = exported("dlrm_hstu", tmp_path / "p")
    manifest = json.loads((path / "manifest.json").read_text())
    name = f"native/{library.name}"
    assert manifest["native_library"] == name and name in manifest["checksums"]
    assert (path / name).read_bytes() == b"machine code"
    loads.clear()
    load_package(path)
    assert loads == [path / name]


def test_models_without_attention_carry_nothing(
    tmp_path: Path, library: Path, loads: list[Path]
) -> None:
    path = exported("mmoe", tmp_path / "p")
    assert open_package(path).manifest["native_library"] is None
    assert not (path / "native").exists() and loads == []


def test_other_kernels_carry_nothing(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_of(config_of("dlrm_hstu"))
    monkeypatch.setattr(carrying, "chosen_kernel", lambda *arguments: "CPU_TORCH")
    assert carrying.carry(pipeline, tmp_path, torch.device("cpu")) is None
    monkeypatch.setattr(carrying, "chosen_kernel", lambda *arguments: "CPU_NATIVE")
    monkeypatch.setattr(carrying.native, "library_path", lambda: None)
    assert carrying.carry(pipeline, tmp_path, torch.device("cpu")) is None


def test_a_library_for_others_is_not_loaded(
    tmp_path: Path, library: Path, loads: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    package = Package(tmp_path, {"native_library": "native/tzgen_native-ffff.so"})
    with caplog.at_level("INFO", logger="tzgen"):
        carrying.load_carried(package)
    assert loads == [] and "another version, torch or processor" in caplog.text
    carrying.load_carried(Package(tmp_path, {}))
    assert loads == []
