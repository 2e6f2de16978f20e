# SPDX-License-Identifier: Apache-2.0
"""Packages equal eager, refuse drift, and load without the trainer."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from export.export_world import batch_of, config_of, in_pages, pipeline_of
from safetensors.torch import load_file, save_file

from tzgen.errors import UserError
from tzgen.export import writing
from tzgen.export.cached import EagerCached, Groups
from tzgen.export.loaded import load_package
from tzgen.export.package import write_manifest
from tzgen.export.parity import cached_answers, largest_difference

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
    encoded = {f"{case}, encoded" for case in cases}
    assert set(manifest["parity"]) == {*cases, *encoded}
    assert {case: manifest["parity"][case] for case in cases} == dict.fromkeys(cases, 0.0)
    assert max(manifest["parity"].values()) < 1e-5
    assert {"tables.safetensors", "dense.safetensors"} <= set(manifest["checksums"])


def test_tables_and_dense_weights_are_apart(tmp_path: Path) -> None:
    _, pipeline, path = export(tmp_path, "dlrm_hstu")
    tables = load_file(path / "tables.safetensors")
    dense = load_file(path / "dense.safetensors")
    assert set(tables) == {name for name, _ in pipeline.module.embeddings.tables.named_weights()}
    assert set(dense) == set(pipeline.module.head.state_dict())


@pytest.mark.parametrize("name", ["mmoe", "ple", "mmoe_sequence"])
def test_weights_beside_the_tables_travel(tmp_path: Path, name: str) -> None:
    """AutoDis and sequence encoders are part of the embeddings and are trained."""
    config = config_of(name)
    pipeline = pipeline_of(config)
    with torch.no_grad():
        for parameter in pipeline.module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    batch = batch_of(config, pipeline)
    path = writing.export_package(pipeline, batch, tmp_path / "p", provenance={})
    dense = load_file(path / "dense.safetensors")
    assert any(key.startswith("embeddings.assemble") for key in dense)
    assert (
        largest_difference(pipeline.predict(batch)[0], load_package(path).predict(batch)[0])[1] == 0
    )


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


STABLE = (
    "model_config.dlrm_hstu.hstu.stu.append_stable=true",
    "model_config.dlrm_hstu.hstu.positional_encoder.use_time_encoding=false",
)


def test_the_manifest_lists_graphs_and_why_there_is_no_append(tmp_path: Path) -> None:
    _, _, path = export(tmp_path / "a", "dlrm_hstu")
    manifest = json.loads((path / "manifest.json").read_text())
    assert list(manifest["graphs"]) == ["full", "encode", "score"]
    encode, score = manifest["graphs"]["encode"], manifest["graphs"]["score"]
    assert encode["then"] == ["request_time"] and encode["outputs"] == score["then"]
    assert not any(entry["name"].startswith("candidate") for entry in encode["inputs"])
    assert all(entry["name"].startswith("candidate") for entry in score["inputs"])
    assert score["outputs"] == [n for n in manifest["outputs"] if n != "repeat"]
    fields = " ".join(manifest["append_refused"])
    assert "stu.append_stable (false)" in fields and "use_time_encoding (true)" in fields
    _, _, path = export(tmp_path / "b", "dlrm_hstu", *STABLE)
    manifest = json.loads((path / "manifest.json").read_text())
    assert list(manifest["graphs"]) == ["full", "encode", "score", "append"]
    assert manifest["graphs"]["encode"]["then"] == [] and manifest["append_refused"] == []
    names = [entry["name"] for entry in manifest["graphs"]["append"]["inputs"]]
    assert "uih" in names and "contextual" not in names
    assert "empty histories, appended" in manifest["parity"]


def test_the_graphs_of_caches_can_be_left_out(tmp_path: Path) -> None:
    _, _, path = export(tmp_path / "a", "dlrm_hstu", "export_config.cached_graphs=false")
    assert list(json.loads((path / "manifest.json").read_text())["graphs"]) == ["full"]
    _, _, path = export(tmp_path / "b", "mmoe")
    manifest = json.loads((path / "manifest.json").read_text())
    assert list(manifest["graphs"]) == ["full"] and "cache" not in manifest


def test_drift_of_a_cached_graph_refuses_to_publish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drifting(self: EagerCached, groups: Groups, cache: object) -> dict[str, torch.Tensor]:
        return {name: value + 1 for name, value in original(self, groups, cache).items()}

    original = EagerCached.score
    monkeypatch.setattr(EagerCached, "score", drifting)
    with pytest.raises(UserError, match=r"differs from eager.*\(as saved, encoded\)"):
        export(tmp_path, "dlrm_hstu")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler")
def test_compiled_package_equals_the_pipeline_on_other_rows(tmp_path: Path) -> None:
    config, pipeline, path = export(tmp_path, "dlrm_hstu", "export_config.format=AOTI", *STABLE)
    graphs = ("full", "encode", "score", "append")
    assert all((path / "graphs" / f"{name}.pt2").exists() for name in graphs)
    loaded = load_package(path)
    for rows in (1, 2, 7):
        other = batch_of(config, pipeline, num_rows=rows, seed=rows)
        want, got = pipeline.predict(other)[0], loaded.predict(other)[0]
        answers = {"whole": got, **cached_answers(loaded, other, "rows")}
        assert set(answers) == {"whole", "rows, encoded", "rows, appended"}
        for kind, answer in answers.items():
            name, difference = largest_difference(want, answer)
            assert difference < 1e-5, f"{kind} {name}"
    groups = loaded.pipeline.module.embeddings(other)
    cache = loaded.encode(groups)
    paged = in_pages(cache)
    for name, value in loaded.score(groups, paged).items():
        torch.testing.assert_close(value, loaded.score(groups, cache)[name])
    with pytest.raises(UserError, match="compiled for"):
        loaded.score(groups, replace(cache, max_len=10**6))
