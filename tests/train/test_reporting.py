# SPDX-License-Identifier: Apache-2.0
"""The log is whole after a kill and never holds steps that were undone."""

from __future__ import annotations

import json
from pathlib import Path

from tzgen.train.reporting import LOG_NAME, Reporter, read_log, truncate_log


def report(folder: Path, resumed_step: int = 0, enabled: bool = True) -> Reporter:
    return Reporter(folder, enabled=enabled, tensorboard=False, resumed_step=resumed_step, total=4)


def test_lines_carry_kind_step_and_plain_values(tmp_path: Path) -> None:
    reporter = report(tmp_path)
    reporter.step(rows=2, tokens=9)
    reporter.record("train", 1, {"loss": 0.5, "auc": float("nan")}, epoch=0)
    assert reporter.rates()["samples_per_s"] > 0
    reporter.close()
    assert read_log(tmp_path / LOG_NAME) == [
        {"kind": "train", "step": 1, "epoch": 0, "loss": 0.5, "auc": None}
    ]


def test_a_resume_drops_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / LOG_NAME
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3)) + '{"step": 4, "lo')
    reporter = report(tmp_path, resumed_step=2)
    reporter.record("train", 3, {"loss": 1.0})
    reporter.close()
    assert [line["step"] for line in read_log(path)] == [1, 2, 3]
    truncate_log(tmp_path / "absent.jsonl", 0)


def test_other_ranks_say_nothing(tmp_path: Path) -> None:
    reporter = report(tmp_path, enabled=False)
    reporter.step(1, 1)
    reporter.record("train", 1, {"loss": 1.0})
    assert reporter.rates() == {}
    reporter.close()
    assert list(tmp_path.iterdir()) == []
