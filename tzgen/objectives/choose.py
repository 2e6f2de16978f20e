# SPDX-License-Identifier: Apache-2.0
"""Which objective and which evaluation metrics a model has, by what it says it `measures`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from tzgen.config.tasks import TaskSpec
from tzgen.data.batch import Batch
from tzgen.models.base import Model, Outputs
from tzgen.objectives.item_metrics import ItemMetrics
from tzgen.objectives.item_objective import ItemObjective
from tzgen.objectives.metrics import AllGather, TaskMetrics
from tzgen.objectives.objective import Objective
from tzgen.objectives.sid_metrics import SidMetrics
from tzgen.objectives.sid_objective import Gather, SidObjective, alone


class EvalMetrics(Protocol):
    """Fed batch by batch, merged over ranks, read once."""

    def update(self, outputs: Outputs, batch: Batch) -> None: ...

    def state(self) -> dict[str, dict[str, Tensor]]: ...

    def compute(self, all_gather: AllGather | None = None) -> dict[str, float]: ...

    def intervals(self, all_gather: AllGather | None = None) -> dict[str, tuple[float, float]]: ...


def make_objective(
    model: Model, tasks: Sequence[TaskSpec], model_config: Any, gather: Gather = alone
) -> Objective:
    """The losses that this model is trained on; `gather` is what SidObjective takes."""
    if model.measures == "codes":
        return SidObjective(model_config, gather)
    if model.measures == "items":
        return ItemObjective(model_config, label_temperature=model.label_temperature)
    return Objective(tasks, model_config)


def make_metrics(
    model: Model, tasks: Sequence[TaskSpec], eval_config: Any, *, intervals: bool
) -> EvalMetrics:
    """What an evaluation of this model measures."""
    if model.measures == "codes":
        return SidMetrics(model.codebook)
    if model.measures == "items":
        return ItemMetrics(
            model.num_items,
            list_size=model.list_size,
            extra=model.extra_metrics,
            confidence_key=eval_config.confidence_key,
            bootstrap_samples=eval_config.bootstrap_samples if intervals else 0,
            seed=eval_config.bootstrap_seed,
        )
    return TaskMetrics(
        tasks,
        confidence_key=eval_config.confidence_key if intervals else "",
        bootstrap_samples=eval_config.bootstrap_samples,
        seed=eval_config.bootstrap_seed,
    )
