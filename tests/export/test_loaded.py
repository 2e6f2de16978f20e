# SPDX-License-Identifier: Apache-2.0
"""A package stands alone: own config, own weights, own device, and overrides of what may change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from export.export_world import batch_of, config_of, pipeline_of
from safetensors.torch import load_file, save_file

from tzgen.errors import ConfigError, UserError
from tzgen.export.loaded import load_package
from tzgen.export.package import write_manifest
from tzgen.export.writing import export_package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    config = config_of()
    pipeline = pipeline_of(config)
    batch = batch_of(config, pipeline)
    return export_package(pipeline, batch, tmp_path / "p", provenance={})


def rewritten(package: Path, **changes: object) -> None:
    """The package committed again, with other entries in its manifest."""
    body = json.loads((package / "manifest.json").read_text())
    (package / "manifest.json").unlink()
    kept = {name: value for name, value in body.items() if name != "checksums"}
    write_manifest(package, {**kept, **changes})


def test_outputs_are_named_and_graphs_take_groups(package: Path) -> None:
    loaded = load_package(package)
    assert not loaded.pipeline.module.training
    batch = batch_of(loaded.pipeline.config, loaded.pipeline)
    outputs, repeat = loaded.predict(batch)
    assert "repeat" not in outputs and repeat is not None
    assert {"probs_click", "y_seconds"} <= set(outputs)
    assert outputs["probs_click"].shape == (int(repeat.sum()),)
    again, _ = loaded.run(loaded.pipeline.module.embeddings(batch))
    assert all(torch.equal(again[name], value) for name, value in outputs.items())
    assert not outputs["probs_click"].requires_grad


def test_the_saved_replay_is_reproduced(package: Path) -> None:
    loaded = load_package(package)
    stored = load_file(package / "replay.safetensors")
    flat = [stored[f"in.{i}"] for i in range(sum(name.startswith("in.") for name in stored))]
    with torch.no_grad():
        results = loaded.graph(*flat)
    for name, value in zip(loaded.package.manifest["outputs"], results, strict=True):
        torch.testing.assert_close(value, stored[f"out.{name}"])


def test_overrides_reach_its_config(package: Path) -> None:
    loaded = load_package(package, overrides=["data_config.batch_size=3"])
    assert loaded.pipeline.config.data_config.batch_size == 3
    with pytest.raises(ConfigError, match="nothing"):
        load_package(package, overrides=["data_config.nothing=3"])


def test_another_model_does_not_fit(package: Path) -> None:
    deeper = "model_config.dlrm_hstu.hstu.attn_num_layers=3"
    with pytest.raises(UserError, match=r"weights and pipeline\.config disagree.*missing"):
        load_package(package, overrides=[deeper])


def test_a_compiled_graph_is_bound_to_its_device(package: Path) -> None:
    rewritten(package, format="AOTI", device="cuda")
    with pytest.raises(UserError, match=r"compiled for cuda.*cpu.*EAGER"):
        load_package(package)


def test_weights_are_the_packages(package: Path) -> None:
    before = load_package(package)
    tables = load_file(package / "tables.safetensors")
    save_file({name: value * 0 for name, value in tables.items()}, package / "tables.safetensors")
    rewritten(package)
    after = load_package(package)
    batch = batch_of(before.pipeline.config, before.pipeline)
    one, other = (loaded.predict(batch)[0]["probs_click"] for loaded in (before, after))
    assert not torch.equal(one, other)
