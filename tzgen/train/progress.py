# SPDX-License-Identifier: Apache-2.0
"""Where a run stands, apart from its weights: step, reader position, best metric, patience."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from tzgen.data.batch import Position
from tzgen.errors import UserError
from tzgen.train.evaluator import Evaluation


class Progress:
    """Plain numbers that trainer.json holds.

    The watched metrics are export_config.best_exporter_metric for the best checkpoint and
    train_config.early_stopping.metric for stopping. A name without its task ("auc" where there are
    auc_is_click and auc_is_like) is the mean over the tasks.
    """

    def __init__(self, config: Any) -> None:
        self._export, self._stopping = config.export_config, config.train_config.early_stopping
        self._stops = config.train_config.HasField("early_stopping")
        self.step = 0
        self.position = Position(config.train_config.seed, 0, 0, "")
        self.best: dict[str, Any] | None = None
        self.patience_best: float | None = None
        self.bad_evaluations = 0
        self.stopped = False
        self.evaluation: Evaluation | None = None
        self.evaluated_step = -1
        self.saved_step = -1

    def require_metrics(self, known: Collection[str]) -> None:
        """Refuse to start when a watched metric will not be among `known`, those of an evaluation.

        An empty `known` means that nothing is evaluated. Raises UserError.
        """
        if self._stops and not known:
            raise UserError(
                f"train_config.early_stopping watches {self._stopping.metric!r} and there is "
                "nothing to evaluate: set eval_input_path, or remove early_stopping"
            )
        wanted = [self._stopping.metric] if self._stops else []
        if known and self._export.HasField("best_exporter_metric"):
            wanted.append(self._export.best_exporter_metric)
        for name in wanted:
            watched(dict.fromkeys(known, 0.0), name, required=True)

    def take(self, evaluation: Evaluation) -> bool:
        """Note an evaluation at the current step; True when it is the best so far."""
        self.evaluation, self.evaluated_step = evaluation, self.step
        if self._stops:
            self._watch(evaluation)
        name = self._export.best_exporter_metric
        explicit = self._export.HasField("best_exporter_metric")
        value = watched(evaluation.metrics, name, required=explicit)
        if value is None or math.isnan(value):
            return False
        larger = self._export.metric_larger_is_better
        if self.best is None or _better(value, self.best["value"], larger):
            self.best = {"metric": name, "value": value, "step": self.step}
            return True
        return False

    def as_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "position": asdict(self.position),
            "best": self.best,
            "patience_best": self.patience_best,
            "bad_evaluations": self.bad_evaluations,
            "stopped": self.stopped,
            "evaluation": self.evaluation.as_json() if self.evaluation else None,
            "evaluated_step": self.evaluated_step,
        }

    def load(self, entry: dict[str, Any]) -> None:
        self.step = self.saved_step = entry["step"]
        self.position = Position(**entry["position"])
        self.best, self.patience_best = entry["best"], entry["patience_best"]
        self.bad_evaluations, self.stopped = entry["bad_evaluations"], entry["stopped"]
        self.evaluated_step = entry["evaluated_step"]
        if entry["evaluation"]:
            metrics = {
                k: math.nan if v is None else v for k, v in entry["evaluation"]["metrics"].items()
            }
            self.evaluation = Evaluation(metrics, {}, entry["evaluation"]["num_rows"])

    def _watch(self, evaluation: Evaluation) -> None:
        rule = self._stopping
        value = watched(evaluation.metrics, rule.metric, required=True)
        assert value is not None, "a required metric is there or was refused"
        sign = 1.0 if rule.metric_larger_is_better else -1.0
        if self.patience_best is None or sign * (value - self.patience_best) > rule.min_delta:
            self.patience_best, self.bad_evaluations = value, 0
        else:
            self.bad_evaluations += 1
        self.stopped = self.bad_evaluations >= rule.patience_evals


def watched(metrics: dict[str, float], name: str, *, required: bool) -> float | None:
    """The metric called `name`, or the mean over tasks of `name`_<task>; None when absent.

    Raises UserError listing the known metrics when it is absent and `required`.
    """
    if name in metrics:
        return metrics[name]
    tasks = [value for key, value in metrics.items() if key.startswith(f"{name}_")]
    if tasks:
        return sum(tasks) / len(tasks)
    if required:
        raise UserError(f"metric {name!r} is watched but not configured; known: {sorted(metrics)}")
    return None


def _better(value: float, best: float, larger: bool) -> bool:
    return value > best if larger else value < best
