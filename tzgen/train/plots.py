# SPDX-License-Identifier: Apache-2.0
"""curves.png: the loss of each logged step and the metrics of each evaluation."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tzgen.log import LOGGER
from tzgen.train.reporting import LOG_NAME, read_log

NAME = "curves.png"


def plot_training(model_dir: Path) -> Path | None:
    """Draw what train_log.jsonl holds; None, and a line said, without matplotlib or a log."""
    if importlib.util.find_spec("matplotlib") is None:
        LOGGER.info("no %s: pip install 'tzgen[plots]' for plots", NAME)
        return None
    log = model_dir / LOG_NAME
    entries = read_log(log) if log.exists() else []
    panels = [("loss", _series(entries, "train", "loss"))]
    panels += [(kind, _series(entries, "eval", kind)) for kind in _metric_kinds(entries)]
    panels = [(title, series) for title, series in panels if series]
    if not panels:
        return None
    return _draw(panels, model_dir / NAME)


def _draw(panels: list[tuple[str, dict[str, list[tuple[int, float]]]]], path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # pyplot would take seconds to import

    figure = Figure(figsize=(5 * len(panels), 3.6))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, (title, series) in zip(axes[0], panels, strict=True):
        for name, points in sorted(series.items()):
            steps, values = zip(*points, strict=True)
            axis.plot(
                steps, values, label=name, marker="o" if len(points) < 20 else None, linewidth=1
            )
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.subplots_adjust(left=0.6 / figure.get_figwidth(), right=0.99, bottom=0.15, top=0.9)
    figure.savefig(path, dpi=110)
    return path


def _series(
    entries: list[dict[str, Any]], kind: str, prefix: str
) -> dict[str, list[tuple[int, float]]]:
    """name -> (step, value) of every entry of `kind` whose name is `prefix` or starts with it."""
    series: dict[str, list[tuple[int, float]]] = {}
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
