# SPDX-License-Identifier: Apache-2.0
"""The loop: what happens at a step, an epoch's end, a signal, and where nothing comes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from train.train_world import config_of, names

from tzgen.build import build_pipeline
from tzgen.data.loader import BatchLoader
from tzgen.errors import UserError
from tzgen.train.environment import environment
from tzgen.train.reporting import read_log
from tzgen.train.trainer import Trainer, _termination

LOCAL = "train_config.embedding_engine=LOCAL"


def fit(folder: Path, *overrides: str) -> Trainer:
    """A run of two epochs of three steps in folder/m."""
    (folder / "m").mkdir(exist_ok=True)
    config = config_of(folder, LOCAL, *overrides)
    with environment() as env:
        trainer = Trainer(build_pipeline(config), env, folder / "m")
        trainer.fit()
    return trainer


def events(folder: Path) -> list[tuple[str, int]]:
    return [(e["kind"], e["step"]) for e in read_log(folder / "m" / "train_log.jsonl")]


def test_a_run_in_order(tmp_path: Path) -> None:
    trainer = fit(tmp_path)
    assert events(tmp_path) == [
        *[("train", step) for step in (1, 2, 3)],
        ("eval", 3),
        *[("train", step) for step in (4, 5, 6)],
        ("eval", 6),
    ]
    assert trainer.progress.step == 6 and trainer.progress.position.epoch == 2
    assert trainer.interrupted_by is None and trainer.evaluated
    assert names(list((tmp_path / "m").glob("model.ckpt-*"))) == {"model.ckpt-3", "model.ckpt-6"}


def test_steps_and_epochs_that_fall_together_act_once(tmp_path: Path) -> None:
    both = ("train_config.eval_steps=3", "train_config.eval_epochs=1")
    patience = (
        "train_config.early_stopping.metric=auc",
        "train_config.early_stopping.patience_evals=2",
        "train_config.early_stopping.min_delta=9",
        "train_config.num_epochs=9",
    )
    fit(tmp_path, *both, *patience)
    assert [step for kind, step in events(tmp_path) if kind == "eval"] == [3, 6, 9]


def test_the_end_is_evaluated_and_saved_whatever_the_cadence(tmp_path: Path) -> None:
    never = ("train_config.save_checkpoints_epochs=0", "train_config.log_step_count_steps=4")
    fit(tmp_path, *never)
    assert events(tmp_path) == [("train", 1), ("train", 4), ("eval", 6)]
    assert names(list((tmp_path / "m").glob("model.ckpt-*"))) == {"model.ckpt-6"}


def test_without_rows_to_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path, LOCAL)
    config.eval_input_path = ""
    (tmp_path / "m").mkdir()
    with environment() as env:
        trainer = Trainer(build_pipeline(config), env, tmp_path / "m")
        assert trainer.fit() is None
    assert {kind for kind, _ in events(tmp_path)} == {"train"}


def test_evaluation_knows_what_the_checkpoint_says(tmp_path: Path) -> None:
    trainer = fit(tmp_path)
    manifest = json.loads((tmp_path / "m" / "model.ckpt-6" / "manifest.json").read_text())
    assert trainer.progress.evaluation is not None
    assert manifest["metrics"] == trainer.progress.evaluation.as_json()


def test_an_epoch_without_batches_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By steps it would go on for ever."""
    config = config_of(tmp_path, LOCAL)
    config.train_config.ClearField("num_epochs")
    config.train_config.num_steps = 5
    nothing = (batch for batch in ())
    monkeypatch.setattr(BatchLoader, "epoch", lambda self, position, epoch: nothing)
    (tmp_path / "m").mkdir()
    with environment() as env:
        trainer = Trainer(build_pipeline(config), env, tmp_path / "m")
        with pytest.raises(UserError, match=r"epoch 0 of .*train\.parquet.*no batch"):
            trainer.fit()


def test_rates_follow_the_schedule(tmp_path: Path) -> None:
    schedule = "exponential_decay_learning_rate={ decay_size: 2 decay_factor: 0.5 }"
    fit(tmp_path, f"train_config.dense_optimizer.{schedule}")
    log = [e for e in read_log(tmp_path / "m" / "train_log.jsonl") if e["kind"] == "train"]
    rates = [entry["learning_rate"] for entry in log]
    assert rates == pytest.approx([0.05, 0.05, 0.025, 0.025, 0.0125, 0.0125])
    assert {entry["sparse_learning_rate"] for entry in log} == {0.5}


def test_loader_processes_end_with_the_run(tmp_path: Path) -> None:
    import multiprocessing

    fit(tmp_path, "data_config.num_workers=2", "train_config.num_epochs=1")
    assert multiprocessing.active_children() == []


def test_a_first_signal_is_noted_a_second_acts() -> None:
    found = signal.signal(signal.SIGINT, signal.default_int_handler)  # may have been ignored
    try:
        with _termination() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert asked == [signal.SIGINT]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                signal.sigtimedwait([], 0)  # where it is delivered at the latest
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, found)
