# SPDX-License-Identifier: Apache-2.0
"""Losses, metrics and predictions: the one loop over tasks."""

from tzgen.objectives.confidence import PairedBootstrap, paired_bootstrap
from tzgen.objectives.metrics import TaskMetrics, TrainMetrics
from tzgen.objectives.objective import LossTerm, Objective
from tzgen.objectives.predictions import predictions

__all__ = [
    "LossTerm",
    "Objective",
    "PairedBootstrap",
    "TaskMetrics",
    "TrainMetrics",
    "paired_bootstrap",
    "predictions",
]
