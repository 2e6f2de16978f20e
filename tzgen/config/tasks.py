# SPDX-License-Identifier: Apache-2.0
"""What a model is trained and measured on, as one list of TaskSpec whatever message holds it.

Tasks come from FusionMTLTower.task_configs (HSTU rankers), from `task_towers` (mmoe, ple, ...), or,
for single-task, match and semantic-ID models, from ModelConfig's own losses and metrics. Nothing
above this file reads those messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from tzgen.errors import ConfigError, Problem

# The loss of LossConfig -> what the task's output is.
_OUTPUT = {
    "binary_cross_entropy": "binary",
    "binary_focal_loss": "binary",
    "softmax_cross_entropy": "classes",
    "jrc_loss": "classes",
    "l2_loss": "regression",
    "listwise_rank_loss": "score",
}


@dataclass(frozen=True)
class TaskSpec:
    """One task. `name` is "" for the only task of a single-task model; "" elsewhere means unset.

    `task_bitmask` 0: the column is the label, else the label is 1 where the column has any of its
    bits. `losses`, `metrics` and `train_metrics` are the config's messages.
    """

    name: str
    label_name: str
    losses: tuple[Any, ...]
    metrics: tuple[Any, ...] = ()
    train_metrics: tuple[Any, ...] = ()
    num_class: int = 1
    task_bitmask: int = 0
    weight: float = 1.0
    sample_weight_name: str = ""
    task_space_indicator_label: str = ""
    in_task_space_weight: float = 1.0
    out_task_space_weight: float = 1.0
    pareto_min_loss_weight: float = 0.0

    @property
    def suffix(self) -> str:
        """What its outputs and metrics end in: "_is_click", or "" when it is the only task."""
        return f"_{self.name}" if self.name else ""

    @property
    def output(self) -> str:
        """What the model's number for the task means: binary, classes, regression or score.

        A list-wise loss alone leaves a score that is no probability; beside another loss the other
        decides. Raises ConfigError when two losses read the output differently.
        """
        kinds = {_OUTPUT.get(loss.WhichOneof("loss"), "") for loss in self.losses} - {"score", ""}
        if len(kinds) > 1:
            names = ", ".join(str(loss.WhichOneof("loss")) for loss in self.losses)
            problem = Problem(
                f"task {self.name!r} losses",
                names,
                "losses that read the output alike: binary, by class, or as a number",
                "Make two tasks of the same label.",
            )
            raise ConfigError([problem])
        return kinds.pop() if kinds else "score"


def metric_problem(path: str, kind: str | None, task: TaskSpec) -> Problem | None:
    """Why the metric `kind` at `path` cannot measure what the model's number for the task means."""
    classes = task.output == "classes" and task.num_class > 2
    probabilities = task.output in ("binary", "classes")
    allowed = {
        "multiclass_auc": task.output == "classes",
        "accuracy": probabilities,
        "normalized_entropy": probabilities and not classes,
    }.get(kind or "", not classes)
    if kind is not None and allowed:
        return None
    losses = ", ".join(str(loss.WhichOneof("loss")) for loss in task.losses)
    return Problem(
        path,
        f"{kind or 'nothing'} with {losses}, num_class {task.num_class}",
        "a metric of this output",
        "Use multiclass_auc or accuracy for several classes, probabilities for "
        "normalized_entropy and accuracy, one number for the others.",
    )


def task_specs(model_config: Message, label_fields: Sequence[str] = ()) -> tuple[TaskSpec, ...]:
    """The tasks of a ModelConfig, in configured order; () for a model without losses, or with those
    of a tokenizer, which have no label.

    `label_fields` (data_config's) is what a task without `label_name` takes its label from: the
    field at the task's position, as TorchEasyRec does.
    """
    kind = model_config.WhichOneof("model")
    model = getattr(model_config, kind) if kind else None
    messages = _task_messages(model)
    if messages is None:
        if all(loss.WhichOneof("sid_loss") for loss in model_config.losses):
            return ()
        return (_spec(model_config, "", _label(label_fields, 0)),)
    return tuple(
        _spec(message, _name(message), message.label_name or _label(label_fields, position))
        for position, message in enumerate(messages)
    )


def _task_messages(model: Any) -> Sequence[Any] | None:
    """The task messages of a model's message; None for a model that has no such list."""
    if model is None:
        return None
    fields = model.DESCRIPTOR.fields_by_name
    if "fusion_mtl_tower" in fields:
        return model.fusion_mtl_tower.task_configs
    return model.task_towers if "task_towers" in fields else None


def _name(message: Any) -> str:
    field = "task_name" if "task_name" in message.DESCRIPTOR.fields_by_name else "tower_name"
    return str(getattr(message, field))


def _label(label_fields: Sequence[str], position: int) -> str:
    return label_fields[position] if position < len(label_fields) else ""


def _spec(message: Any, name: str, label_name: str) -> TaskSpec:
    known = message.DESCRIPTOR.fields_by_name
    scalars = (
        "num_class",
        "task_bitmask",
        "weight",
        "sample_weight_name",
        "task_space_indicator_label",
        "in_task_space_weight",
        "out_task_space_weight",
        "pareto_min_loss_weight",
    )
    return TaskSpec(
        name=name,
        label_name=label_name,
        losses=tuple(message.losses),
        metrics=tuple(message.metrics),
        train_metrics=tuple(message.train_metrics),
        **{field: getattr(message, field) for field in scalars if field in known},
    )
