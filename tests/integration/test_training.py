# SPDX-License-Identifier: Apache-2.0
"""What training computes: engines and micro-batches agree, averages, clipping, fine-tuning, and the
reasons to stop."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from world import SMALL, World, assert_close, losses, weights

from tzgen.build import build_pipeline
from tzgen.config import load_pipeline

LOCAL = "train_config.embedding_engine=LOCAL"
SPARSE = {
    "sgd": "train_config.sparse_optimizer.sgd_optimizer.lr=0.5",
    "adagrad": "train_config.sparse_optimizer.adagrad_optimizer={ lr: 0.1 }",
    "rowwise": "train_config.sparse_optimizer.rowwise_adagrad_optimizer={ lr: 0.1 }",
}
STILL = "train_config.dense_optimizer.sgd_optimizer.momentum=0"


def assert_same_losses(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    one, other = losses(mine), losses(theirs)
    assert list(one) == list(other) and len(one) > 3
    for step, values in one.items():
        assert values == pytest.approx(other[step], rel=1e-4, abs=1e-6), f"step {step}"


@pytest.mark.parametrize("sparse", SPARSE)
def test_both_engines_train_alike(world: World, tmp_path: Path, sparse: str) -> None:
    sharded = world.trained(tmp_path / "sharded", SPARSE[sparse])
    local = world.trained(tmp_path / "local", SPARSE[sparse], LOCAL)
    assert_same_losses(sharded, local)
    for part in ("model", "optimizer"):
        mine, theirs = (weights(tmp_path / name, 16, part) for name in ("sharded", "local"))
        assert_close(mine, theirs)


@pytest.mark.parametrize("engine", ["LOCAL", "TORCHREC"])
@pytest.mark.parametrize("sparse", ["sgd", "rowwise"])
def test_micro_batches_are_one_batch(
    world: World, tmp_path: Path, engine: str, sparse: str
) -> None:
    """Adagrad shows how often tables step; 64 rows make a last batch of 4, in uneven parts."""
    sets = (f"train_config.embedding_engine={engine}", SPARSE[sparse])
    whole = world.trained(tmp_path / "whole", *sets, "data_config.batch_size=15")
    parts = ("data_config.batch_size=5", "train_config.gradient_accumulation_steps=3")
    micro = world.trained(tmp_path / "micro", *sets, *parts)
    assert_same_losses(whole, micro)
    assert_close(weights(tmp_path / "whole", 10), weights(tmp_path / "micro", 10))
    assert_close(
        weights(tmp_path / "whole", 10, "optimizer"), weights(tmp_path / "micro", 10, "optimizer")
    )


def test_more_micro_batches_than_rows(world: World, tmp_path: Path) -> None:
    """60 + 4 rows in eight parts: half of the last ones are empty."""
    whole = world.trained(tmp_path / "whole", "data_config.batch_size=60")
    parts = ("data_config.batch_size=10", "train_config.gradient_accumulation_steps=6")
    assert_same_losses(whole, world.trained(tmp_path / "micro", *parts))


def test_autocast_trains(world: World, tmp_path: Path) -> None:
    full = world.trained(tmp_path / "full", LOCAL)
    half = world.trained(tmp_path / "half", LOCAL, "train_config.mixed_precision=BF16")
    mine, theirs = (losses(log)[16]["loss"] for log in (full, half))
    assert mine != theirs and mine == pytest.approx(theirs, rel=0.05)


def test_averaged_weights_are_evaluated_and_exported(world: World, tmp_path: Path) -> None:
    """Against the average worked out from all checkpoints of the run."""
    ema = ("train_config.dense_optimizer.ema.decay=0.8", LOCAL)
    often = "train_config.save_checkpoints_steps=1"
    log = world.trained(tmp_path / "m", *ema, often, "train_config.num_epochs=1")
    built = build_pipeline(load_pipeline(SMALL, [*ema]), engine="local")
    names = [name for name, _ in built.module.head.named_parameters(prefix="head")]
    shadow = {name: p.detach().clone() for name, p in built.module.named_parameters()}
    for step in range(1, 9):
        for name, value in weights(tmp_path / "m", step).items():
            if name in names:
                shadow[name] = 0.8 * shadow[name] + 0.2 * value
    stored = weights(tmp_path / "m", 8, "optimizer")
    assert_close({n: stored[f"ema.{n}"] for n in names}, {n: shadow[n] for n in names})
    flags = {"model_dir": tmp_path / "m", "eval_input_path": world.eval}
    found = []
    for value in ("true", "false"):
        sets = (*ema, f"eval_config.use_dense_ema={value}")
        done = world.run("eval", *sets, **flags, eval_result_filename=f"{value}.json")
        assert done.status == 0, done.err
        found.append(json.loads((tmp_path / "m" / f"{value}.json").read_text())["metrics"])
    last = {name: value for name, value in log[-1].items() if name in found[0]}
    assert last == pytest.approx(found[0], rel=1e-5), "training evaluates the average"
    assert found[1]["loss_l2_loss_seconds"] != pytest.approx(last["loss_l2_loss_seconds"], rel=1e-4)


def test_clipping_bounds_the_step(world: World, tmp_path: Path) -> None:
    """Plain SGD moves by lr * gradient, so 16 steps move by 16 * lr * max_gradient at most."""
    bound = 16 * 0.05 * 1e-3
    clip = (
        "train_config.grad_clipping.clipping_type=norm",
        "train_config.grad_clipping.max_gradient=1e-3",
    )
    log = world.trained(tmp_path / "m", LOCAL, STILL, *clip)
    norms = [line["gradient_norm"] for line in log if line["kind"] == "train"]
    assert min(norms) > 1e-3, "the norm is told as it was before clipping"
    start = dict(
        build_pipeline(load_pipeline(SMALL), engine="local").module.head.named_parameters(
            prefix="head"
        )
    )
    end = weights(tmp_path / "m", 16)
    moved = torch.cat([(end[name] - value.detach()).flatten() for name, value in start.items()])
    assert 0 < torch.linalg.vector_norm(moved) <= bound * 1.001


@pytest.mark.parametrize("engine", ["LOCAL", "TORCHREC"])
def test_fine_tuning_with_renamed_tables(world: World, tmp_path: Path, engine: str) -> None:
    first = world.trained(tmp_path / "first", LOCAL)
    assert first
    renamed = tmp_path / "renamed.config"
    text = SMALL.read_text().replace('embedding_name: "video"', 'embedding_name: "clip"')
    text = text.replace("hidden_units: 16", "hidden_units: 24")
    still = re.sub(r"sgd_optimizer \{ lr: [\d.]+ \}", "sgd_optimizer { lr: 1e-30 }", text)
    renamed.write_text(still)
    other = World(world.folder, renamed)
    names = tmp_path / "map.txt"
    names.write_text("tables.clip\ttables.video\n\n")
    flags = {"fine_tune_checkpoint": tmp_path / "first"}
    sets = (
        f'train_config.fine_tune_ckpt_param_map="{names}"',
        f"train_config.embedding_engine={engine}",
    )
    done = other.fit(tmp_path / "second", *sets, "train_config.num_epochs=1", **flags)
    assert done.status == 0, done.err
    assert "left as initialised" in done.err
    old, new = weights(tmp_path / "first", 16), weights(tmp_path / "second", 8)
    start = build_pipeline(load_pipeline(renamed), engine="local").module
    for name, value in new.items():
        theirs = {"tables.clip": "tables.video"}.get(name, name)
        if theirs in old and old[theirs].shape == value.shape:
            torch.testing.assert_close(value, old[theirs], rtol=0, atol=1e-6)
        else:
            assert "tower" in name, f"{name} should have been taken"
            torch.testing.assert_close(value, start.get_parameter(name).detach(), rtol=0, atol=1e-6)
    names.write_text("tables.clop\ttables.video\n")
    done = other.fit(tmp_path / "third", *sets, **flags)
    done.fails("map.txt:1", "tables.clop")


def test_early_stopping(world: World, tmp_path: Path) -> None:
    rule = [
        "train_config.early_stopping.metric=auc",
        "train_config.early_stopping.patience_evals=2",
        "train_config.early_stopping.min_delta=1",
        "train_config.num_epochs=50",
    ]
    log = world.trained(tmp_path / "m", LOCAL, *rule)
    assert [line["step"] for line in log if line["kind"] == "eval"] == [8, 16, 24]
    assert (tmp_path / "m" / "model.ckpt-24").is_dir()
    again = world.trained(tmp_path / "m", LOCAL, *rule)
    assert again == log, "a run that stopped early is over"
    unknown = world.fit(tmp_path / "n", LOCAL, "train_config.early_stopping.metric=recall@5")
    unknown.fails("recall@5", "auc_click")


def test_retention_keeps_newest_and_best(world: World, tmp_path: Path) -> None:
    sets = ["train_config.num_epochs=4", "train_config.keep_checkpoint_max=1", LOCAL]
    sets += ["export_config.best_exporter_metric=loss_l2_loss_seconds"]
    best = "export_config.metric_larger_is_better"
    for larger, pick in (("false", min), ("true", max)):
        folder = tmp_path / larger
        log = world.trained(folder, *sets, f"{best}={larger}")
        scores = {x["step"]: x["loss_l2_loss_seconds"] for x in log if x["kind"] == "eval"}
        assert list(scores) == [8, 16, 24, 32]
        kept = {int(path.name.rsplit("-", 1)[1]) for path in folder.glob("model.ckpt-*")}
        assert kept == {32, pick(scores, key=lambda step: scores[step])}
        only = world.trained(
            tmp_path / f"only-{larger}",
            *sets,
            f"{best}={larger}",
            "train_config.keep_best_checkpoint=false",
        )
        assert only and len(list((tmp_path / f"only-{larger}").glob("model.ckpt-*"))) == 1


def test_evaluation_has_a_cadence_of_its_own(world: World, tmp_path: Path) -> None:
    sets = ["train_config.eval_steps=3", "train_config.save_checkpoints_steps=4", LOCAL]
    log = world.trained(tmp_path / "n", *sets, "train_config.log_step_count_steps=5")
    assert [x["step"] for x in log if x["kind"] == "eval"] == [3, 6, 9, 12, 15, 16]
    assert [x["step"] for x in log if x["kind"] == "train"] == [1, 5, 10, 15]
    steps = {int(p.name.rsplit("-", 1)[1]) for p in (tmp_path / "n").glob("model.ckpt-*")}
    assert steps >= {4, 8, 12, 16}


@pytest.mark.parametrize("engine", ["LOCAL", "TORCHREC"])
def test_a_broken_row_is_named(world: World, tmp_path: Path, engine: str) -> None:
    table = pq.read_table(world.train)
    cells = table["cand__seconds"].to_pylist()
    cells[37][0] = 1e25  # finite, its square is not
    index = table.column_names.index("cand__seconds")
    kind = pa.list_(pa.float32())
    table = table.remove_column(index).add_column(index, "cand__seconds", pa.array(cells, kind))
    pq.write_table(table, tmp_path / "poisoned.parquet", row_group_size=20)
    sets = (f"train_config.embedding_engine={engine}", "train_config.save_checkpoints_steps=1")
    done = world.fit(
        tmp_path / "m",
        *sets,
        "data_config.num_workers=1",
        train_input_path=tmp_path / "poisoned.parquet",
    )
    done.fails("poisoned.parquet", "l2_loss_seconds is inf")
    told = re.search(r"step (\d+): .*rows ([\d, ]+)", done.err)
    assert told is not None and 37 in {int(row) for row in told[2].split(",")}
    steps = [int(p.name.rsplit("-", 1)[1]) for p in (tmp_path / "m").glob("model.ckpt-*")]
    assert max(steps, default=0) == int(told[1]) - 1, "the poisoned step is not saved"
    for step in steps:
        values = weights(tmp_path / "m", step).values()
        assert all(bool(value.isfinite().all()) for value in values)


def test_training_by_steps_goes_round_and_round(world: World, tmp_path: Path) -> None:
    config = tmp_path / "steps.config"
    config.write_text(SMALL.read_text().replace("num_epochs: 2", "num_steps: 19"))
    log = World(world.folder, config).trained(tmp_path / "m", LOCAL)
    epochs = [line["epoch"] for line in log if line["kind"] == "train"]
    assert epochs == [0] * 8 + [1] * 8 + [2] * 3
    first, second = losses(log)[1]["loss"], losses(log)[9]["loss"]
    assert first != second
