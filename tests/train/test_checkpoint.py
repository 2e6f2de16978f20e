# SPDX-License-Identifier: Apache-2.0
"""A checkpoint is whole or it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tzgen.errors import UserError
from tzgen.train import checkpoint
from tzgen.train.environment import Env

ENV = Env(0, 1, 0, torch.device("cpu"))


def write(model_dir: Path, step: int, value: float = 1.0) -> Path:
    return checkpoint.save(
        model_dir,
        step,
        env=ENV,
        model={"w": torch.full((2, 3), value)},
        optimizer={"dense.w.step": torch.tensor(float(step))},
        trainer={"step": step},
        config_text="# empty",
        manifest={"metrics": {"auc": 0.5}},
    )


def test_written_and_read_back(tmp_path: Path) -> None:
    write(tmp_path, 7, 2.5)
    found = checkpoint.latest(tmp_path)
    assert found is not None and found.step == 7 and found.trainer == {"step": 7}
    target = {"w": torch.zeros(2, 3)}
    checkpoint.load_state(target, found.path / "model")
    assert torch.equal(target["w"], torch.full((2, 3), 2.5))
    checkpoint.verify(found)
    assert found.manifest["metrics"] == {"auc": 0.5}


def test_without_a_manifest_it_does_not_exist(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (write(tmp_path, 2) / "manifest.json").unlink()
    found = checkpoint.latest(tmp_path)
    assert found is not None and found.step == 1
    with pytest.raises(UserError, match=r"ckpt-2.*never committed"):
        checkpoint.open_checkpoint(tmp_path / "model.ckpt-2")
    (tmp_path / "model.ckpt-1" / "manifest.json").write_text('{"schema_ver')
    assert checkpoint.latest(tmp_path) is None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    victim = next((path / "model").glob("*.distcp"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=victim.name):
        checkpoint.verify(checkpoint.open_checkpoint(path))
    victim.unlink()
    with pytest.raises(UserError, match="missing"):
        checkpoint.verify(checkpoint.open_checkpoint(path))


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, 1) / "model"
    with pytest.raises(UserError, match="other"):
        checkpoint.load_state({"other": torch.zeros(1)}, folder)
    with pytest.raises(UserError, match=r"w: checkpoint \(2, 3\), model \(4, 3\)"):
        checkpoint.load_state({"w": torch.zeros(4, 3)}, folder)


def test_retention_keeps_the_newest_and_the_protected(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    checkpoint.retain(tmp_path, keep=2, protected={1})
    assert [c.step for c in checkpoint.committed(tmp_path)] == [1, 3, 4]
    checkpoint.retain(tmp_path, keep=0, protected=set())
    assert len(checkpoint.committed(tmp_path)) == 3


def test_leftovers_of_killed_runs_are_swept(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / ".writing-model.ckpt-2" / "model").mkdir(parents=True)
    (tmp_path / ".removing-model.ckpt-0").mkdir()
    checkpoint.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.ckpt-1"]


def test_the_same_step_again_replaces(tmp_path: Path) -> None:
    write(tmp_path, 1, 1.0)
    write(tmp_path, 1, 9.0)
    target = {"w": torch.zeros(2, 3)}
    checkpoint.load_state(target, tmp_path / "model.ckpt-1" / "model")
    assert target["w"][0, 0] == 9.0


def test_absent_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no committed checkpoint"):
        checkpoint.open_checkpoint(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.open_checkpoint(tmp_path / "model.ckpt-9")
