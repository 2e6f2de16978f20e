# SPDX-License-Identifier: Apache-2.0
"""Packages equal eager, refuse drift, and load without the trainer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from export.export_world import batch_of, config_of, pipeline_of
from safetensors.torch import load_file, save_file

from tzgen.errors import UserError
from tzgen.export import writing
from tzgen.export.loaded import load_package
from tzgen.export.package import write_manifest

HAS_COMPILER = shutil.which("g++") is not None or shutil.which("clang++") is not None


def export(tmp_path: Path, name: str, *overrides: str) -> tuple:
    config = config_of(name, *overrides)
    pipeline = pipeline_of(config)
    batch = batch_of(config, pipeline)
    path = writing.export_package(pipeline, batch, tmp_path / "p", provenance={"step": 3})
    return config, pipeline, path


@pytest.mark.parametrize("name", ["dlrm_hstu", "dlrm_hstu_mtgr", "mmoe", "ple"])
def test_eager_package_equals_the_pipeline_on_other_rows(tmp_path: Path, name: str) -> None:
    config, pipeline, path = export(tmp_path, name)
    loaded = load_package(path)
    other = batch_of(config, pipeline, num_rows=5, seed=9)
    want, repeat = pipeline.predict(other)
    got, got_repeat = loaded.predict(other)
    assert set(got) == set(want) and want
    for output in want:
        assert torch.equal(got[output], want[output]), output
    assert (repeat is None) == (got_repeat is None)
    assert repeat is None or torch.equal(repeat, got_repeat)


def test_the_manifest_says_where_it_came_from(tmp_path: Path) -> None:
    _, _, path = export(tmp_path, "dlrm_hstu")
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 3 and manifest["format"] == "EAGER"
    cases = ("as saved", "first row", "one-step histories", "empty histories")
    assert manifest["parity"] == dict.fromkeys(cases, 0.0)
    assert {"tables.safetensors", "dense.safetensors"} <= set(manifest["checksums"])


def test_tables_and_dense_weights_are_apart(tmp_path: Path) -> None:
    _, pipeline, path = export(tmp_path, "dlrm_hstu")
    tables = load_file(path / "tables.safetensors")
    dense = load_file(path / "dense.safetensors")
    assert set(tables) == {name for name, _ in pipeline.module.embeddings.tables.named_weights()}
    assert set(dense) == set(pipeline.module.head.state_dict())


def test_drift_refuses_to_publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = writing._write_weights

    def drifting(pipeline, folder: Path) -> None:
        original(pipeline, folder)
        dense = load_file(folder / "dense.safetensors")
        drifted = {name: value * 1.5 for name, value in dense.items()}
        save_file(drifted, folder / "dense.safetensors")

    monkeypatch.setattr(writing, "_write_weights", drifting)
    with pytest.raises(UserError, match=r"differs from eager.*Nothing was published"):
        export(tmp_path, "dlrm_hstu")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    _, _, path = export(tmp_path, "dlrm_hstu")
    dense = load_file(path / "dense.safetensors")
    dense["stranger"] = torch.zeros(1)
    save_file(dense, path / "dense.safetensors")
    body = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").unlink()
    body.pop("checksums")
    write_manifest(path, {k: v for k, v in body.items() if k != "schema_version"})
    with pytest.raises(UserError, match="stranger"):
        load_package(path)


def test_aoti_without_a_compiler_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="compiler"):
        export(tmp_path, "dlrm_hstu", "export_config.format=AOTI")


def test_auto_without_a_compiler_is_eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing.shutil, "which", lambda name: None)
    _, _, path = export(tmp_path, "dlrm_hstu", "export_config.format=AUTO")
    assert json.loads((path / "manifest.json").read_text())["format"] == "EAGER"


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler")
def test_compiled_package_equals_the_pipeline_on_other_rows(tmp_path: Path) -> None:
    config, pipeline, path = export(tmp_path, "dlrm_hstu", "export_config.format=AOTI")
    assert (path / "graphs" / "full.pt2").exists()
    loaded = load_package(path)
    for rows in (1, 2, 7):
        other = batch_of(config, pipeline, num_rows=rows, seed=rows)
        want, got = pipeline.predict(other)[0], loaded.predict(other)[0]
        for output in want:
            torch.testing.assert_close(got[output], want[output], atol=1e-5, rtol=1e-5)
