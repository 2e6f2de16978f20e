# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint holds does not depend on the engine, and all of it comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from train.train_world import moved, pipeline_of, snapshot

from tzgen.build import Pipeline, open_loader
from tzgen.data.batch import Batch, Position
from tzgen.errors import ConfigError, UserError
from tzgen.train import checkpoint
from tzgen.train.environment import Env, environment
from tzgen.train.progress import Progress
from tzgen.train.state import RunState

STATEFUL = (
    "train_config.dense_optimizer.adam_optimizer={ lr: 0.01 }",
    "train_config.dense_optimizer.ema.decay=0.9",
    "train_config.sparse_optimizer.adagrad_optimizer={ lr: 0.1 }",
)


def state_of(
    folder: Path, env: Env, *overrides: str, engine: str = "local"
) -> tuple[Pipeline, RunState, Progress]:
    pipeline = pipeline_of(folder, *STATEFUL, *overrides, engine=engine)
    loader = open_loader(pipeline, pipeline.config.train_input_path, mode="train")
    return pipeline, RunState(pipeline, env, folder / "m", loader), Progress(pipeline.config)


def epoch_of(pipeline: Pipeline, position: Position | None = None) -> Iterator[Batch]:
    """The training batches from `position`, or the start of the first epoch."""
    loader = open_loader(pipeline, pipeline.config.train_input_path, mode="train")
    return loader.epoch(position, 0)


def stepped(
    state: RunState, progress: Progress, batches: Iterator[Batch], count: int = 1
) -> list[float]:
    """The losses of `count` steps."""
    losses = []
    for _ in range(count):
        state.set_rates(progress.step, 0)
        output = state.stepper.progress(batches)
        assert output is not None and output.batch.position is not None
        progress.step += 1
        progress.position = output.batch.position
        losses.append(state.mean_losses(output)["loss"])
    state.stepper.pause()
    return losses


@pytest.mark.parametrize("written", ["local", "torchrec"])
@pytest.mark.parametrize("read", ["local", "torchrec"])
def test_engines_read_each_other(tmp_path: Path, written: str, read: str) -> None:
    with environment() as env:
        pipeline, state, progress = state_of(tmp_path, env, engine=written)
        batches = epoch_of(pipeline)
        stepped(state, progress, batches, 2)
        state.save(progress)
        expected = stepped(state, progress, batches)
        mine, other, again = state_of(tmp_path, env, engine=read)
        position = other.restore(again, ignore_optimizer=False)
        assert again.step == 2 and position.next_row == 16 and again.saved_step == 2
        found = stepped(other, again, epoch_of(mine, position))
        assert found == pytest.approx(expected, rel=1e-5)


def test_names_are_plain(tmp_path: Path) -> None:
    found = []
    with environment() as env:
        for engine in ("local", "torchrec"):
            folder = tmp_path / engine
            folder.mkdir()
            pipeline, state, progress = state_of(folder, env, engine=engine)
            stepped(state, progress, epoch_of(pipeline))
            path = state.save(progress)
            parts = {p: checkpoint.stored_tensors(path / p) for p in ("model", "optimizer")}
            found.append({p: {n: s for n, (s, _) in t.items()} for p, t in parts.items()})
    assert found[0] == found[1]
    assert "tables.video" in found[0]["model"]
    kinds = {name.split(".")[0] for name in found[0]["optimizer"]}
    assert kinds == {"dense", "sparse", "ema"}
    assert not any("_dmp" in name or "module." in name for name in found[0]["model"])


def test_without_a_checkpoint_it_starts(tmp_path: Path) -> None:
    with environment() as env:
        pipeline, state, progress = state_of(tmp_path, env)
        (tmp_path / "m" / ".writing-model.ckpt-3").mkdir(parents=True)
        before = snapshot(pipeline)
        position = state.restore(progress, ignore_optimizer=False)
        assert position.next_row == 0 and progress.step == 0 and moved(before, pipeline) == []
        assert not list((tmp_path / "m").iterdir()), "leftovers are swept"


def test_only_weights_when_asked(tmp_path: Path) -> None:
    with environment() as env:
        pipeline, state, progress = state_of(tmp_path, env)
        stepped(state, progress, epoch_of(pipeline), 2)
        state.save(progress)
        _, other, again = state_of(tmp_path, env)
        other.restore(again, ignore_optimizer=True)
        fresh = [v for n, v in other._sparse.state().items() if v.dim()]
        assert not any(bool(value.any()) for value in fresh)
        for name, value in other.module.state_dict().items():
            assert torch.equal(value, state.module.state_dict()[name]), name


def test_changes_are_refused(tmp_path: Path) -> None:
    with environment() as env:
        pipeline, state, progress = state_of(tmp_path, env)
        stepped(state, progress, epoch_of(pipeline))
        path = state.save(progress)
        _, other, again = state_of(tmp_path, env, "train_config.seed=9")
        with pytest.raises(ConfigError, match=r"train_config\.seed"):
            other.restore(again, ignore_optimizer=False)
        trainer = json.loads((path / "trainer.json").read_text())
        trainer["position"]["fingerprint"] = "others"
        text = json.dumps(trainer)
        (path / "trainer.json").write_text(text)
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["checksums"].pop("trainer.json")
        (path / "manifest.json").write_text(json.dumps(manifest))
        _, third, again = state_of(tmp_path, env)
        with pytest.raises(UserError, match="other data"):
            third.restore(again, ignore_optimizer=False)


def test_averages_are_swapped_in_and_out(tmp_path: Path) -> None:
    with environment() as env:
        pipeline, state, progress = state_of(tmp_path, env)
        start = snapshot(pipeline)
        stepped(state, progress, epoch_of(pipeline), 2)
        end = snapshot(pipeline)
        dense = [name for name in start if name.startswith("head")]
        with state.averaged_weights():
            inside = snapshot(pipeline)
            assert any(not torch.equal(inside[n], end[n]) for n in dense)
        assert moved(end, pipeline) == []
        with pytest.raises(RuntimeError), state.averaged_weights():
            raise RuntimeError
        assert moved(end, pipeline) == [], "also after an error"
        plain = pipeline_of(tmp_path, *STATEFUL, "eval_config.use_dense_ema=false")
        loader = open_loader(plain, plain.config.train_input_path, mode="train")
        without = RunState(plain, env, tmp_path / "m", loader)
        before = snapshot(plain)
        with without.averaged_weights():
            assert moved(before, plain) == []
