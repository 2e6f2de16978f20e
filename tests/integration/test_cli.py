# SPDX-License-Identifier: Apache-2.0
"""One config through every verb: what each leaves behind, and that all compute the same numbers."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from world import World, losses, run

from tzgen.train.reporting import LOG_NAME, read_log

OUTPUTS = ["logits_click", "probs_click", "y_seconds"]


@dataclass(frozen=True)
class Finished:
    """A trained model and its package."""

    world: World
    model_dir: Path
    package: Path


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    model_dir, package = folder / "model", folder / "package"
    world.trained(model_dir, "data_config.num_workers=1", "train_config.use_tensorboard=true")
    done = world.run("export", model_dir=model_dir, eval_input_path=world.eval, export_dir=package)
    assert done.status == 0, done.err
    assert str(package) in done.out
    return Finished(world, model_dir, package)


def predicted(folder: Path) -> pa.Table:
    manifest = json.loads((folder / "_manifest.json").read_text())
    table = pq.read_table(folder)
    assert manifest["rows"] == table.num_rows
    return table


def test_training_leaves_checkpoints_logs_and_curves(finished: Finished) -> None:
    names = {path.name for path in finished.model_dir.iterdir()}
    assert names == {
        "model.ckpt-8",
        "model.ckpt-16",
        LOG_NAME,
        "tensorboard",
        "eval_result.txt",
        "curves.png",
    }
    log = read_log(finished.model_dir / LOG_NAME)
    assert [line["step"] for line in log if line["kind"] == "train"] == list(range(1, 17))
    assert [line["step"] for line in log if line["kind"] == "eval"] == [8, 16]
    assert {"epoch", "learning_rate", "samples_per_s", "tokens_per_s"} <= set(log[0])
    first, last = losses(log)[1]["loss"], losses(log)[16]["loss"]
    assert last < first, "nothing was learned"
    assert (finished.model_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((finished.model_dir / "eval_result.txt").read_text())
    assert result["metrics"] == {k: v for k, v in log[-1].items() if k in result["metrics"]}
    assert {"auc_click", "mean_squared_error_seconds"} <= set(result["metrics"])


def test_the_manifest_says_where_it_came_from(finished: Finished) -> None:
    manifest = json.loads((finished.model_dir / "model.ckpt-16" / "manifest.json").read_text())
    assert {"config_hash", "data_fingerprint", "git_revision", "versions", "checksums"} <= set(
        manifest
    )
    assert manifest["seed"] == 42 and manifest["step"] == 16
    package = json.loads((finished.package / "manifest.json").read_text())
    assert package["checkpoint"] == "model.ckpt-16" and package["format"] == "EAGER"
    assert package["config_hash"] == manifest["config_hash"]
    assert package["parity"] and max(package["parity"].values()) <= 1e-4


def test_eval_gives_what_training_gave(finished: Finished) -> None:
    before = json.loads((finished.model_dir / "eval_result.txt").read_text())["metrics"]
    flags = {"model_dir": finished.model_dir, "eval_input_path": finished.world.eval}
    unread = "train_input_path="  # a path that evaluation does not read may be empty
    done = finished.world.run("eval", unread, **flags, eval_result_filename="again.json")
    assert done.status == 0, done.err
    again = json.loads((finished.model_dir / "again.json").read_text())
    assert again["checkpoint"] == "model.ckpt-16" and again["num_rows"] == 40
    assert again["metrics"] == pytest.approx(before, rel=1e-6)
    assert "auc_click" in done.out
    earlier = finished.model_dir / "model.ckpt-8"
    done = finished.world.run(
        "eval", **flags, checkpoint_path=earlier, eval_result_filename="earlier.json"
    )
    found = json.loads((finished.model_dir / "earlier.json").read_text())["metrics"]
    assert found != pytest.approx(before, rel=1e-4)


def test_package_and_checkpoint_predict_the_same(finished: Finished, tmp_path: Path) -> None:
    world, out = finished.world, {"a": tmp_path / "a", "b": tmp_path / "b"}
    rows = {"predict_input_path": world.eval, "reserved_columns": "user,cand__video"}
    done = run(
        "predict",
        world.argv([], {"model_dir": finished.model_dir, "predict_output_path": out["a"], **rows}),
    )
    assert done.status == 0, done.err
    flags = {"export_dir": finished.package, "predict_output_path": out["b"], **rows}
    done = run("predict", world.argv([], flags)[2:])
    assert done.status == 0, done.err
    checkpoint, package = predicted(out["a"]), predicted(out["b"])
    assert checkpoint.column_names == ["user", "cand__video", *OUTPUTS] == package.column_names
    source = pq.read_table(world.eval)
    assert package["user"].equals(source["user"]), "rows come out in the order they went in"
    assert package["cand__video"].equals(source["cand__video"])
    counts = [len(cell) for cell in source["cand__video"].to_pylist()]
    for name in OUTPUTS:
        assert [len(cell) for cell in package[name].to_pylist()] == counts, "one list a row"
        mine, theirs = (
            t[name].combine_chunks().flatten().to_numpy() for t in (checkpoint, package)
        )
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    probabilities = package["probs_click"].combine_chunks().flatten().to_numpy()
    logits = package["logits_click"].combine_chunks().flatten().to_numpy()
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), atol=1e-6)
    assert np.ptp(logits) > 0


def test_prediction_flags(finished: Finished, tmp_path: Path) -> None:
    world = finished.world
    bare = tmp_path / "bare.parquet"  # without labels: they are not needed
    source = pq.read_table(world.eval).drop_columns(["cand__action", "cand__seconds"])
    pq.write_table(source, bare)
    flags = {
        "export_dir": finished.package,
        "predict_input_path": bare,
        "predict_output_path": tmp_path / "out",
        "reserved_columns": "ALL_COLUMNS",
        "output_columns": "y_seconds",
        "predict_steps": 2,
        "writer_type": "ParquetWriter",
    }
    done = run("predict", world.argv([], flags)[2:])
    assert done.status == 0, done.err
    table = predicted(tmp_path / "out")
    assert table.column_names == [*source.column_names, "y_seconds"]
    assert table.num_rows == 2 * 8, "two batches"
    again = {**flags, "predict_steps": 1}
    run("predict", world.argv([], again)[2:]).fails(str(tmp_path / "out"), "overwrit")
    done = run("predict", world.argv([], {**again, "overwrite": True})[2:])
    assert done.status == 0, done.err
    assert predicted(tmp_path / "out").num_rows == 8


def test_the_best_checkpoint_can_be_exported(world: World, tmp_path: Path) -> None:
    metric = "export_config.best_exporter_metric=mean_squared_error_seconds"
    best = (metric, "export_config.metric_larger_is_better=false")
    log = world.trained(tmp_path / "m", *best, "train_config.num_epochs=3")
    scores = {x["step"]: x["mean_squared_error_seconds"] for x in log if x["kind"] == "eval"}
    flags = {"model_dir": tmp_path / "m", "eval_input_path": world.eval}
    sets = (*best, "export_config.exporter_type=best")
    done = world.run("export", *sets, **flags, export_dir=tmp_path / "p")
    assert done.status == 0, done.err
    manifest = json.loads((tmp_path / "p" / "manifest.json").read_text())
    assert manifest["step"] == min(scores, key=lambda step: scores[step])


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler: AOTI does")
def test_a_compiled_package_predicts_the_same(finished: Finished, tmp_path: Path) -> None:
    world, compiled = finished.world, tmp_path / "compiled"
    done = world.run(
        "export",
        "export_config.format=AOTI",
        "export_config.cached_graphs=false",  # tests/export compiles them
        model_dir=finished.model_dir,
        eval_input_path=world.eval,
        export_dir=compiled,
    )
    assert done.status == 0, done.err
    manifest = json.loads((compiled / "manifest.json").read_text())
    assert manifest["format"] == "AOTI" and "graphs/full.pt2" in manifest["checksums"]
    assert set(manifest["parity"]) >= {"as saved", "empty histories", "one-step histories"}
    tables = []
    for name, package in (("a", finished.package), ("b", compiled)):
        flags = {
            "export_dir": package,
            "predict_input_path": world.train,
            "predict_output_path": tmp_path / name,
        }
        done = run("predict", world.argv([], flags)[2:])
        assert done.status == 0, done.err
        tables.append(predicted(tmp_path / name))
    for name in OUTPUTS:
        mine, theirs = (t[name].combine_chunks().flatten().to_numpy() for t in tables)
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
