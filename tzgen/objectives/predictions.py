# SPDX-License-Identifier: Apache-2.0
"""Outputs as a user reads them, under TorchEasyRec's names.

    binary        logits_<task> [N], probs_<task> [N]
    C classes     logits_<task> [N, C], probs_<task> [N, C]; with two, probs1_<task> [N] as well
    regression    y_<task> [N]
    list-wise     logits_<task> [N]

A model with one unnamed task has no suffix. What a model decodes (codes, items) keeps its names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tzgen.config.tasks import TaskSpec
from tzgen.errors import UserError
from tzgen.models.base import Outputs


def predictions(outputs: Outputs, tasks: Sequence[TaskSpec]) -> dict[str, Tensor]:
    """Every task's outputs by name, float32, in task order; then what was decoded, as it is."""
    named: dict[str, Tensor] = {}
    for task in tasks:
        logits, suffix, kind = logits_of(outputs, task), task.suffix, task.output
        if kind == "regression":
            named[f"y{suffix}"] = logits
            continue
        named[f"logits{suffix}"] = logits
        if kind == "binary":
            named[f"probs{suffix}"] = torch.sigmoid(logits)
        elif kind == "classes":
            probs = torch.softmax(logits, dim=1)
            named[f"probs{suffix}"] = probs
            if task.num_class == 2:
                named[f"probs1{suffix}"] = probs[:, 1]
    return {**named, **outputs.decoded}


def logits_of(outputs: Outputs, task: TaskSpec) -> Tensor:
    """The task's raw output, float32: [N], or [N, num_class]. Raises UserError on another shape."""
    if task.name not in outputs.logits:
        known = ", ".join(sorted(outputs.logits)) or "none"
        raise UserError(f"task {task.name!r} has no output; the model gives: {known}")
    logits = outputs.logits[task.name].float()
    if task.num_class == 1 and logits.dim() == 2 and logits.size(1) == 1:
        logits = logits.squeeze(1)
    wanted = 1 if task.num_class == 1 else 2
    if logits.dim() != wanted or (wanted == 2 and logits.size(1) != task.num_class):
        raise UserError(
            f"task {task.name!r}: the model's output is {tuple(logits.shape)}; num_class "
            f"{task.num_class} needs {'[N]' if wanted == 1 else f'[N, {task.num_class}]'}"
        )
    return logits


def score_of(task: TaskSpec, logits: Tensor) -> Tensor | None:
    """The one number to rank or measure by, [N]: probability of the positive class, or the value.

    None with more than two classes. A list-wise score is the logit itself.
    """
    if task.output == "binary":
        return torch.sigmoid(logits)
    if task.output == "classes":
        return torch.softmax(logits, dim=1)[:, 1] if task.num_class == 2 else None
    return logits
