# SPDX-License-Identifier: Apache-2.0
"""A run that was interrupted and started again is the run that was not: bit for bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from world import World, losses, weights

from tzgen.train.reporting import LOG_NAME, read_log
from tzgen.train.trainer import Trainer

# Everything that carries state from step to step.
STATEFUL = (
    "train_config.dense_optimizer.adam_optimizer={ lr: 0.01 }",
    "train_config.dense_optimizer.exponential_decay_learning_rate="
    "{ decay_size: 3 decay_factor: 0.9 }",
    "train_config.dense_optimizer.ema.decay=0.9",
    "train_config.sparse_optimizer.adagrad_optimizer={ lr: 0.1 }",
    "train_config.grad_clipping.clipping_type=norm",
    "model_config.dlrm_hstu.fusion_mtl_tower.task_configs[0].train_metrics="
    "[{ auc {} decay_rate: 0.9 decay_step: 2 }]",
    "model_config.dlrm_hstu.hstu.input_dropout_ratio=0.2",
    "model_config.dlrm_hstu.hstu.stu.output_dropout_ratio=0.1",
    "train_config.save_checkpoints_steps=3",
    "train_config.num_epochs=2",
)
ENGINES = {
    "torchrec": (*STATEFUL, "data_config.num_workers=1"),
    "local": (*STATEFUL, "train_config.embedding_engine=LOCAL"),
    "accumulated": (
        *STATEFUL,
        "train_config.gradient_accumulation_steps=2",
        "data_config.batch_size=4",
    ),
}


def after(step: int, action: Callable[[], None]) -> Callable[..., None]:
    """Trainer._after_step that does something once a step is done, its checkpoint included."""
    original = Trainer._after_step

    def run(self: Trainer, *args: object) -> None:
        original(self, *args)  # type: ignore[arg-type]
        if self.progress.step == step:
            action()

    return run


class Killed(Exception):
    """Stands for a crash: nothing after it is written."""


def crash() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def train_metrics(log: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The faded metrics of each logged training step."""
    lines = [line for line in log if line["kind"] == "train"]
    return [{k: v for k, v in line.items() if k.startswith("auc")} for line in lines]


def assert_same_run(mine: Path, theirs: Path, last: int = 16) -> None:
    """All losses, all metrics, all weights and all optimizer state are equal, not close."""
    one, other = read_log(mine / LOG_NAME), read_log(theirs / LOG_NAME)
    assert losses(one) == losses(other) and len(losses(one)) == last
    assert train_metrics(one) == train_metrics(other)
    assert [e for e in one if e["kind"] == "eval"] == [e for e in other if e["kind"] == "eval"]
    for part in ("model", "optimizer"):
        values, expected = weights(mine, last, part), weights(theirs, last, part)
        assert set(values) == set(expected)
        for name, value in values.items():
            assert torch.equal(value, expected[name]), name


@pytest.fixture(scope="module", params=ENGINES)
def uninterrupted(
    world: World, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Path, Sequence[str]]:
    folder = tmp_path_factory.mktemp("whole") / "model"
    world.trained(folder, *ENGINES[request.param])
    return folder, ENGINES[request.param]


def test_crash_and_resume(
    world: World, uninterrupted: tuple[Path, Sequence[str]], tmp_path: Path, monkeypatch
) -> None:
    """In the middle of an epoch, after one, and with steps that no checkpoint holds."""
    whole, sets = uninterrupted
    for step in (5, 8, 13):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_after_step", after(step, crash))
            with pytest.raises(Killed):
                world.fit(tmp_path / "m", *sets)
    world.trained(tmp_path / "m", *sets)
    assert_same_run(tmp_path / "m", whole)


def test_sigterm_saves_and_resumes(world: World, tmp_path: Path, monkeypatch) -> None:
    sets = ENGINES["torchrec"]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_after_step", after(4, terminate))
        done = world.fit(tmp_path / "m", *sets)
    assert done.status == 128 + signal.SIGTERM, "a chain of commands must not go on"
    assert "SIGTERM" in done.err and "step 4" in done.err and "Traceback" not in done.err
    assert (tmp_path / "m" / "model.ckpt-4" / "manifest.json").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the handler is put back"
    world.trained(tmp_path / "m", *sets)
    world.trained(tmp_path / "whole", *sets)
    assert_same_run(tmp_path / "m", tmp_path / "whole")


def test_a_finished_run_started_again_changes_nothing(world: World, tmp_path: Path) -> None:
    first = world.trained(tmp_path / "m", "train_config.embedding_engine=LOCAL")
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("m/model.ckpt-*/*/*")}
    done = world.fit(tmp_path / "m", "train_config.embedding_engine=LOCAL")
    assert done.status == 0 and "auc_click" in done.out, "its result is told again"
    assert read_log(tmp_path / "m" / LOG_NAME) == first
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.glob("m/model.ckpt-*/*/*")}


def test_more_epochs_go_on_from_the_end(world: World, tmp_path: Path) -> None:
    local = "train_config.embedding_engine=LOCAL"
    world.trained(tmp_path / "m", local, "train_config.num_epochs=1")
    world.trained(tmp_path / "m", local, "train_config.num_epochs=2")
    world.trained(tmp_path / "whole", local)
    assert_same_run(tmp_path / "m", tmp_path / "whole")


def test_another_engine_and_batch_size_may_go_on(world: World, tmp_path: Path) -> None:
    """The batch size decides the course, not what a checkpoint holds: the next row is the same."""
    world.trained(tmp_path / "m", "train_config.num_epochs=1", "data_config.num_workers=1")
    local = "train_config.embedding_engine=LOCAL"
    log = world.trained(tmp_path / "m", local, "data_config.batch_size=16")
    assert [line["step"] for line in log if line["kind"] == "train"] == list(range(1, 13))


def test_without_optimizer_state(world: World, tmp_path: Path) -> None:
    sets = ("train_config.embedding_engine=LOCAL", *STATEFUL)
    world.trained(tmp_path / "m", *sets, "train_config.num_epochs=1")
    again = world.trained(tmp_path / "m", *sets, ignore_restore_optimizer="true")
    whole = world.trained(tmp_path / "whole", *sets)
    assert losses(again)[9] == losses(whole)[9], "the weights are the same"
    assert losses(again)[16] != losses(whole)[16], "Adam began anew"


def test_half_written_checkpoints_are_swept(world: World, tmp_path: Path) -> None:
    local = "train_config.embedding_engine=LOCAL"
    world.trained(tmp_path / "m", local, "train_config.num_epochs=1")
    (tmp_path / "m" / ".writing-model.ckpt-9" / "model").mkdir(parents=True)
    (tmp_path / "m" / "model.ckpt-9").mkdir()
    world.trained(tmp_path / "m", local)
    world.trained(tmp_path / "whole", local)
    assert_same_run(tmp_path / "m", tmp_path / "whole")
    assert not list((tmp_path / "m").glob(".*"))
