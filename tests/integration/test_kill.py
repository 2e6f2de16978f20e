# SPDX-License-Identifier: Apache-2.0
"""tools/kill_test.py: SIGKILL at seeded instants, inside checkpoint writes too, changes nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from world import SMALL, World

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import kill_test


@pytest.mark.parametrize("seed", range(20))
def test_the_plan_is_what_the_tool_promises(seed: int) -> None:
    kills = kill_test.plan(seed, 10, last=100, save_every=5)
    assert kills == kill_test.plan(seed, 10, last=100, save_every=5)
    assert kills != kill_test.plan(seed + 1, 10, last=100, save_every=5)
    steps = [kill.step for kill in kills]
    assert steps == sorted(steps) and len(set(steps)) == 10 and steps[-1] < 95
    assert steps[0] < 5 <= steps[1] and not kills[0].writing
    assert sum(kill.writing for kill in kills) == 2


def test_differences_are_found() -> None:
    log = [
        {"kind": "train", "step": 1, "loss": 0.5, "samples_per_s": 9.0},
        {"kind": "eval", "step": 1, "auc": None},
    ]
    slower = [{**log[0], "samples_per_s": 1.0}, log[1]]
    assert kill_test.differences(log, slower, rtol=0) == []
    other = [{**log[0], "loss": 0.5 + 2**-53}, log[1]]
    assert len(kill_test.differences(other, log, rtol=0)) == 1
    assert kill_test.differences(other, log, rtol=1e-9) == []
    assert len(kill_test.differences(log, [log[0], {**log[1], "auc": 0.5}], rtol=1)) == 1
    assert kill_test.differences(log, log[:1], rtol=0) == ["eval at step 1 is in one log only"]


@pytest.mark.slow
def test_killed_runs_end_as_if_left_in_peace(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--pipeline_config", str(SMALL), "--kills", "3", "--save_checkpoints_steps", "3"]
    words += ["--train_input_path", str(world.train), "--eval_input_path", str(world.eval)]
    words += ["--set", "train_config.num_epochs=3", "--work_dir", str(tmp_path), "--seed", "7"]
    with pytest.raises(SystemExit) as end:
        kill_test.main(words)
    told = capsys.readouterr().out
    assert end.value.code == 0, told
    assert told.count("half written") >= 2 and "0 values differ" in told
