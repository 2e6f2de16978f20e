# SPDX-License-Identifier: Apache-2.0
"""curves.png from a log, without the parts of matplotlib that take seconds to load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tzgen.train import plots
from tzgen.train.reporting import LOG_NAME


def write_log(folder: Path) -> Path:
    lines = [{"kind": "train", "step": s, "loss": 1 / s, "loss_a": 0.5} for s in range(1, 40)]
    lines += [{"kind": "eval", "step": s, "auc_a": 0.5 + s / 100, "auc_b": None} for s in (1, 20)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / LOG_NAME).write_text(text)
    return folder


def test_curves_are_drawn(tmp_path: Path) -> None:
    path = plots.plot_training(write_log(tmp_path))
    assert path == tmp_path / "curves.png"
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_series_are_picked_by_name() -> None:
    entries = [
        {"kind": "train", "step": 1, "loss": 2.0, "loss_a": 3.0, "lossless": 1.0},
        {"kind": "eval", "step": 1, "loss": 9.0, "auc_a": 0.5, "auc_b": None},
    ]
    assert plots._series(entries, "train", "loss") == {"loss": [(1, 2.0)], "loss_a": [(1, 3.0)]}
    assert plots._series(entries, "eval", "auc") == {"auc_a": [(1, 0.5)]}
    assert plots._metric_kinds(entries) == ["auc", "loss"]


def test_nothing_to_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plots.plot_training(tmp_path) is None
    (tmp_path / LOG_NAME).write_text("")
    assert plots.plot_training(tmp_path) is None
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    assert plots.plot_training(write_log(tmp_path)) is None
    assert not (tmp_path / "curves.png").exists()


def test_pyplot_is_not_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tzgen.train.plots import plot_training\n"
        f"assert plot_training(Path({str(write_log(tmp_path))!r}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
