# SPDX-License-Identifier: Apache-2.0
"""curves.svg: the loss of each logged step and the metrics of each evaluation.

Written as text: a plotting library would take seconds to load at the end of each run.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from tzgen.train.reporting import LOG_NAME, read_log

NAME = "curves.svg"
Points = list[tuple[int, float]]
WIDTH, HEIGHT = 480, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 32, 38  # margins around the axes of a panel
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")
FEW = 20  # points of a short series are marked


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
    path.write_text(_svg(panels), encoding="utf-8")
    return path


def _svg(panels: list[tuple[str, dict[str, Points]]]) -> str:
    width = WIDTH * len(panels)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}" '
        f'viewBox="0 0 {width} {HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{HEIGHT}" fill="white"/>',
    ]
    for index, (title, series) in enumerate(panels):
        lines.append(f'<g transform="translate({index * WIDTH} 0)">')
        lines += _panel(title, series)
        lines.append("</g>")
    return "\n".join([*lines, "</svg>", ""])


def _panel(title: str, series: dict[str, Points]) -> list[str]:
    """Axes with a grid, a line for each series, a legend."""
    points = [point for some in series.values() for point in some]
    x_ticks = ticks([step for step, _ in points])
    y_ticks = ticks([value for _, value in points])
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def x(step: float) -> float:
        return LEFT + (right - LEFT) * (step - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])

    def y(value: float) -> float:
        return bottom - (bottom - TOP) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    lines = [_text(WIDTH / 2, TOP - 12, title, "middle", 14)]
    lines.append(_text((LEFT + right) / 2, HEIGHT - 6, "step", "middle"))
    for tick in x_ticks:
        lines.append(_line(x(tick), TOP, x(tick), bottom))
        lines.append(_text(x(tick), bottom + 15, f"{tick:g}", "middle"))
    for tick in y_ticks:
        lines.append(_line(LEFT, y(tick), right, y(tick)))
        lines.append(_text(LEFT - 6, y(tick) + 4, f"{tick:g}", "end"))
    for index, (name, some) in enumerate(sorted(series.items())):
        colour = COLOURS[index % len(COLOURS)]
        places = [(x(step), y(value)) for step, value in some]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        if len(places) < FEW:
            lines += [
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in places
            ]
        lines.append(_text(right - 6, TOP + 14 + 14 * index, name, "end", fill=colour))
    return lines


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


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str, size: int = 11, fill: str = "black") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}"'
    return f"<text {place}>{escape(text)}</text>"


def _series(entries: list[dict[str, Any]], kind: str, prefix: str) -> dict[str, Points]:
    """name -> (step, value) of every entry of `kind` whose name is `prefix` or starts with it."""
    series: dict[str, Points] = {}
    for entry in entries:
        if entry["kind"] == kind:
            for name, value in entry.items():
                if (name == prefix or name.startswith(f"{prefix}_")) and value is not None:
                    series.setdefault(name, []).append((entry["step"], value))
    return series


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
        "loss",
    )
    names = {name for entry in entries if entry["kind"] == "eval" for name in entry}
    return [kind for kind in known if any(n == kind or n.startswith(f"{kind}_") for n in names)][:4]
