# SPDX-License-Identifier: Apache-2.0
"""curves.png: the loss of each logged step and the metrics of each evaluation.

Drawn with Pillow, which is there in a tenth of a second: a plotting library would take seconds to
load at the end of each run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from tzgen.train.reporting import LOG_NAME, read_log

NAME = "curves.png"
Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 480, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 32, 38  # margins around the axes of a panel
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")
FEW = 20  # points of a short series are marked
GRID, SCALE = "#dddddd", 2


def plot_training(model_dir: Path) -> Path | None:
    """Draw what train_log.jsonl holds; None where it holds nothing to draw."""
    log = model_dir / LOG_NAME
    entries = read_log(log) if log.exists() else []
    panels = [("loss", _series(entries, "train", "loss"))]
    panels += [(kind, _series(entries, "eval", kind)) for kind in _metric_kinds(entries)]
    panels = [(title, series) for title, series in panels if series]
    if not panels:
        return None
    path = model_dir / NAME
    partial = path.with_name(f".{NAME}.partial")
    _picture(panels).save(partial, format="PNG")
    partial.replace(path)
    return path


def _picture(panels: list[tuple[str, dict[str, Points]]]) -> Image.Image:
    """The panels side by side, drawn twice as large as their coordinates."""
    size = (WIDTH * len(panels) * SCALE, HEIGHT * SCALE)
    picture = Image.new("RGB", size, "white")
    for index, (title, series) in enumerate(panels):
        _panel(_Canvas(ImageDraw.Draw(picture), index * WIDTH), title, series)
    return picture


class _Canvas:
    """Lines, dots and text in the coordinates of one panel."""

    def __init__(self, draw: ImageDraw.ImageDraw, left: int) -> None:
        self._draw, self._left = draw, left

    def line(self, points: Points, colour: str, width: int = 1) -> None:
        self._draw.line([self._place(*point) for point in points], fill=colour, width=width)

    def dot(self, x: float, y: float, colour: str) -> None:
        (a, b), r = self._place(x, y), 3 * SCALE
        self._draw.ellipse((a - r, b - r, a + r, b + r), fill=colour)

    def text(
        self, x: float, y: float, text: str, anchor: str, size: int = 11, fill: str = "black"
    ) -> None:
        """`anchor` as Pillow names it: "ms" puts the middle of the base line at (x, y)."""
        font = ImageFont.load_default(size=size * SCALE)
        self._draw.text(self._place(x, y), text, fill=fill, font=font, anchor=anchor)

    def _place(self, x: float, y: float) -> tuple[float, float]:
        return (x + self._left) * SCALE, y * SCALE


def _panel(canvas: _Canvas, title: str, series: dict[str, Points]) -> None:
    """Axes with a grid, a line for each series, a legend."""
    points = [point for some in series.values() for point in some]
    x_ticks = ticks([step for step, _ in points])
    y_ticks = ticks([value for _, value in points])
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    canvas.text(WIDTH / 2, TOP - 12, title, "ms", 14)
    canvas.text((LEFT + right) / 2, HEIGHT - 6, "step", "ms")
    for tick in x_ticks:
        x, _ = place(tick, y_ticks[0], x_ticks, y_ticks)
        canvas.line([(x, TOP), (x, bottom)], GRID)
        canvas.text(x, bottom + 15, f"{tick:g}", "ms")
    for tick in y_ticks:
        _, y = place(x_ticks[0], tick, x_ticks, y_ticks)
        canvas.line([(LEFT, y), (right, y)], GRID)
        canvas.text(LEFT - 6, y + 4, f"{tick:g}", "rs")
    for index, (name, some) in enumerate(sorted(series.items())):
        colour = COLOURS[index % len(COLOURS)]
        places = [place(step, value, x_ticks, y_ticks) for step, value in some]
        canvas.line(places, colour, width=SCALE)
        for x, y in places if len(places) < FEW else []:
            canvas.dot(x, y, colour)
        canvas.text(right - 6, TOP + 14 + 14 * index, name, "rs", fill=colour)


def place(
    step: float, value: float, x_ticks: list[float], y_ticks: list[float]
) -> tuple[float, float]:
    """Where a point of the data stands in its panel."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    x = LEFT + (right - LEFT) * (step - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
    y = bottom - (bottom - TOP) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
    return x, y


def ticks(values: list[float] | list[int]) -> list[float]:
    """Three to seven round numbers, evenly apart, that enclose all finite `values`."""
    finite = [float(value) for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) or 1.0) / 10, high + (abs(high) or 1.0) / 10
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _series(entries: list[dict[str, Any]], kind: str, prefix: str) -> dict[str, Points]:
    """name -> (step, value) of every entry of `kind` whose name is of the family `prefix`."""
    series: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        if entry["kind"] == kind:
            for name, value in entry.items():
                if _is_of(name, prefix) and value is not None:
                    series.setdefault(name, []).append((entry["step"], value))
    return dict(series)


def _metric_kinds(entries: list[dict[str, Any]]) -> list[str]:
    """The families of evaluation metrics: names without their task."""
    known = (
        "auc",
        "grouped_auc",
        "normalized_entropy",
        "mean_absolute_error",
        "mean_squared_error",
        "accuracy",
        "recall",
        "ndcg",
        "xauc",
        "unique_sid_ratio",
        "perplexity",
        "mse",
        "loss",
    )
    names = {name for entry in entries if entry["kind"] == "eval" for name in entry}
    return [kind for kind in known if any(_is_of(name, kind) for name in names)][:4]


def _is_of(name: str, family: str) -> bool:
    """auc, auc_click, recall@10 and recall@10_click are of the families auc and recall."""
    return name == family or name.startswith((f"{family}_", f"{family}@"))
