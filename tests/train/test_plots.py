# SPDX-License-Identifier: Apache-2.0
"""curves.png from a log: every line in its place and colour, no plotting library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

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
    picture = Image.open(path).convert("RGB")
    assert picture.size == (2 * plots.WIDTH * plots.SCALE, plots.HEIGHT * plots.SCALE)
    # the loss (first colour, first panel) passes through 1 / 20 at step 20
    steps, losses = plots.ticks(list(range(1, 40))), plots.ticks([1.0, 1 / 39, 0.5])
    assert colour_at(picture, *plots.place(20, 1 / 20, steps, losses), 0) == plots.COLOURS[0]
    assert colour_at(picture, *plots.place(20, 0.5, steps, losses), 0) == plots.COLOURS[1]
    # auc_a has two points, which are marked; 0.51 at step 1 is left of and below 0.7 at step 20
    steps, values = plots.ticks([1, 20]), plots.ticks([0.51, 0.7])
    first, last = plots.place(1, 0.51, steps, values), plots.place(20, 0.7, steps, values)
    assert first[0] < last[0] and first[1] > last[1]
    for x, y in (first, last):
        assert colour_at(picture, x + 2, y, 1) == plots.COLOURS[0]
    assert list(tmp_path.glob(".*")) == []


def colour_at(picture: Image.Image, x: float, y: float, panel: int) -> str:
    place = ((x + panel * plots.WIDTH) * plots.SCALE, y * plots.SCALE)
    red, green, blue = picture.getpixel((round(place[0]), round(place[1])))
    return f"#{red:02x}{green:02x}{blue:02x}"


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


def test_metrics_with_a_cut_and_those_of_tokenizers_are_drawn() -> None:
    entries = [
        {"kind": "eval", "step": 1, "recall@5": 0.1, "recall@10_click": 0.2, "recalled": 0.3},
        {"kind": "eval", "step": 1, "unique_sid_ratio": 0.9, "perplexity_0": 9.0, "mse": 0.1},
    ]
    assert plots._metric_kinds(entries) == ["recall", "unique_sid_ratio", "perplexity", "mse"]
    assert set(plots._series(entries, "eval", "recall")) == {"recall@5", "recall@10_click"}


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
