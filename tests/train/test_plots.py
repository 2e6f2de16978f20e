# SPDX-License-Identifier: Apache-2.0
"""curves.svg from a log: well-formed, every point in its place, no plotting library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

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
    assert path == tmp_path / "curves.svg"
    svg = ElementTree.parse(path).getroot()
    name = "{http://www.w3.org/2000/svg}"
    lines = [line.get("points", "").split() for line in svg.iter(f"{name}polyline")]
    assert [len(line) for line in lines] == [39, 39, 2]  # loss, loss_a; auc_a
    assert len(list(svg.iter(f"{name}circle"))) == 2, "the points of short series are marked"
    texts = {text.text for text in svg.iter(f"{name}text")}
    assert {"loss", "loss_a", "auc", "auc_a", "step"} <= texts
    (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in lines[2])
    assert x1 < x2 and y1 > y2, "0.51 at step 1 is left of and below 0.7 at step 20"
    for line in lines:
        for point in line:
            x, y = map(float, point.split(","))
            assert plots.LEFT <= x <= plots.WIDTH and plots.TOP <= y <= plots.HEIGHT - plots.BOTTOM


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([0.0, 1.0], [0, 0.5, 1]),
        ([1, 64], [0, 20, 40, 60, 80]),
        ([0.5], [0.45, 0.5, 0.55]),
        ([0.0, 0.0], [-0.1, -0.05, 0, 0.05, 0.1]),
        ([-3.0, float("nan"), 5.0, float("inf")], [-4, -2, 0, 2, 4, 6]),
        ([1e-9, 3e-9], None),
        ([123456789.0, 123456790.0], None),
        ([], [0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_enclose(values: list[float], want: list[float] | None) -> None:
    found = plots.ticks(values)
    if want is not None:
        assert found == pytest.approx(want)
    assert 3 <= len(found) <= 7
    finite = [value for value in values if abs(value) < float("inf")]
    assert all(found[0] <= value <= found[-1] for value in finite)


def test_series_are_picked_by_name() -> None:
    entries = [
        {"kind": "train", "step": 1, "loss": 2.0, "loss_a": 3.0, "lossless": 1.0},
        {"kind": "eval", "step": 1, "loss": 9.0, "auc_a": 0.5, "auc_b": None},
    ]
    assert plots._series(entries, "train", "loss") == {"loss": [(1, 2.0)], "loss_a": [(1, 3.0)]}
    assert plots._series(entries, "eval", "auc") == {"auc_a": [(1, 0.5)]}
    assert plots._metric_kinds(entries) == ["auc", "loss"]


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert plots.plot_training(tmp_path) is None
    (tmp_path / LOG_NAME).write_text("")
    assert plots.plot_training(tmp_path) is None


def test_no_plotting_library_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tzgen.train.plots import plot_training\n"
        f"assert plot_training(Path({str(write_log(tmp_path))!r}))\n"
        "assert 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
