# SPDX-License-Identifier: Apache-2.0
"""Losses, metrics and predictions: the one loop over tasks."""

from tzgen.objectives.choose import EvalMetrics, make_metrics, make_objective
from tzgen.objectives.confidence import PairedBootstrap, paired_bootstrap
from tzgen.objectives.metrics import TaskMetrics, TrainMetrics
from tzgen.objectives.objective import LossTerm, Objective
from tzgen.objectives.predictions import predictions

__all__ = [
    "EvalMetrics",
    "LossTerm",
    "Objective",
    "PairedBootstrap",
    "TaskMetrics",
    "TrainMetrics",
    "make_metrics",
    "make_objective",
    "paired_bootstrap",
    "predictions",
]
