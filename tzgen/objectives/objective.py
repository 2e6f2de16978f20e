# SPDX-License-Identifier: Apache-2.0
"""From outputs and labels to one loss: the only loop over tasks, and the only average.

A term is a weighted sum and its weight, never a mean, so that the average over all ranks is exact:
with `global_average` a sample weighs the same wherever it lies. One all-reduce serves all tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tzgen.config.tasks import TaskSpec
from tzgen.data.batch import Batch, Ragged
from tzgen.errors import ConfigError, Problem, UserError
from tzgen.models.base import Outputs
from tzgen.objectives import losses
from tzgen.objectives.pareto import pareto_loss
from tzgen.objectives.predictions import logits_of
from tzgen.objectives.views import Samples, label_of, samples_of, weight_of

AllReduce = Callable[[Tensor], Tensor]
LISTWISE = "listwise_rank_loss"
_CLASSES = {"softmax_cross_entropy": (2, 2**31), "jrc_loss": (2, 2)}  # others read one number
KNOWN = (
    "binary_cross_entropy",
    "binary_focal_loss",
    "softmax_cross_entropy",
    "jrc_loss",
    "l2_loss",
    LISTWISE,
)


@dataclass(frozen=True)
class LossTerm:
    """One loss of one task on one rank: sum of weighted losses, sum of their weights (both scalars,
    the latter without gradient), and the factor of the term in the total."""

    total: Tensor
    count: Tensor
    weight: float

    @property
    def mean(self) -> Tensor:
        """total / count; 0 where nothing counts."""
        return _divide(self.total, self.count)

    def detach(self) -> LossTerm:
        return replace(self, total=self.total.detach(), count=self.count.detach())

    @staticmethod
    def total_of(terms: Sequence[LossTerm]) -> LossTerm:
        """The same term over the union of samples."""
        total = torch.stack([term.total for term in terms]).sum()
        return LossTerm(total, torch.stack([term.count for term in terms]).sum(), terms[0].weight)


@dataclass(frozen=True)
class NamedLoss:
    """One loss of the config: `kind` is the oneof's member, `options` its message."""

    name: str
    kind: str
    task: TaskSpec
    options: Any
    weight: float


class Objective(nn.Module):
    """Named losses of a batch, and their sum.

    Names are TorchEasyRec's: "binary_cross_entropy_is_click". A task's or loss's weight of 0 keeps
    the term in logs and out of the gradient. Temperatures of list-wise losses are parameters here.
    """

    def __init__(
        self,
        tasks: Sequence[TaskSpec],
        model_config: Any,
        *,
        losses: Sequence[NamedLoss] | None = None,
    ) -> None:
        """`losses`: those of a subclass that measures the model's tensors; None: the tasks' own."""
        super().__init__()
        self.tasks = tuple(tasks)
        of_tasks = (loss for task in tasks for loss in _losses_of(task))
        self.losses = tuple(of_tasks if losses is None else losses)
        if losses is None and not self.losses:
            problem = Problem("model_config", "no losses", "at least one", "Add losses to a task.")
            raise ConfigError([problem])
        kind = model_config.WhichOneof("model")
        model = getattr(model_config, kind) if kind else None
        self.global_average = True
        if model is not None and "enable_global_average_loss" in model.DESCRIPTOR.fields_by_name:
            self.global_average = bool(model.enable_global_average_loss)
        self.use_pareto = bool(model_config.use_pareto_loss_weight) and len(self.tasks) > 1
        least = sum(task.pareto_min_loss_weight for task in tasks)
        if self.use_pareto and least >= 1:
            expected, remedy = "a sum below 1 over the tasks", "Lower some of them."
            raise ConfigError([Problem("pareto_min_loss_weight", f"{least:g}", expected, remedy)])
        self.log_scales = nn.ParameterDict()
        for index, loss in enumerate(self.losses):
            if loss.kind == LISTWISE:
                start = -torch.log(torch.tensor(float(loss.options.temperature_init)))
                trained = bool(loss.options.learnable_temperature)
                self.log_scales[str(index)] = nn.Parameter(start, requires_grad=trained)
        self._unchecked = {task.name for task in self.tasks}

    def forward(self, outputs: Outputs, batch: Batch) -> dict[str, LossTerm]:
        """Loss name -> LossTerm of this rank's batch. A batch without samples gives zeros."""
        terms: dict[str, LossTerm] = {}
        views = {}
        for index, loss in enumerate(self.losses):
            task = loss.task
            if task.name not in views:
                logits = logits_of(outputs, task)
                samples = samples_of(batch, task, logits, outputs.repeat)
                label = label_of(task, batch, samples)
                self._check_labels(task, label, batch)
                views[task.name] = (logits, label, samples, weight_of(task, batch, samples))
            logits, label, samples, weight = views[task.name]
            values, weights = self._values(index, loss, logits, label, samples, weight)
            terms[loss.name] = LossTerm((values * weights).sum(), weights.sum(), loss.weight)
        return terms

    def counts(self, batch: Batch) -> Tensor:
        """float32 [losses]: each term's `count` for a whole batch, known before any forward."""
        counts = []
        for loss in self.losses:
            samples = _samples_of_labels(loss.task, batch)
            weight = weight_of(loss.task, batch, samples)
            if loss.kind == LISTWISE:
                groups, number = _groups(loss, samples, _device(loss.task, batch))
                counts.append(_list_weights(weight, groups, number).sum())
            elif weight is None:
                counts.append(torch.tensor(float(samples.count), device=_device(loss.task, batch)))
            else:
                counts.append(weight.sum())
        return torch.stack(counts)

    def combine(
        self,
        terms: Mapping[str, LossTerm],
        *,
        counts: Tensor | None = None,
        all_reduce: AllReduce | None = None,
        world_size: int = 1,
        parameters: Iterable[nn.Parameter] = (),
    ) -> Tensor:
        """The scalar to call backward on, where gradients are then averaged over ranks.

        all_reduce returns the sum of a tensor over ranks. `counts` [losses] replaces the terms' own
        where they are part of a larger batch. `parameters` are the model's, which
        use_pareto_loss_weight needs while training.
        """
        if not terms:  # a model that is fitted, not descended
            return torch.zeros(())
        total, factors = _stack(terms)
        if counts is None:
            counts = torch.stack([terms[loss.name].count for loss in self.losses])
        counts = counts.to(total.device)  # those of a whole batch may come from the host
        if self.global_average and all_reduce is not None:
            counts = all_reduce(counts) / world_size
        weighted = _divide(total, counts) * factors
        if not (self.use_pareto and self.training and torch.is_grad_enabled()):
            return weighted.sum()
        parameters = list(parameters)
        if not parameters:
            raise ValueError("use_pareto_loss_weight needs combine(parameters=model.parameters())")
        owners = [loss.task.name for loss in self.losses]
        per_task = [
            torch.stack([weighted[i] for i, owner in enumerate(owners) if owner == task.name]).sum()
            for task in self.tasks
        ]
        minimum = [task.pareto_min_loss_weight for task in self.tasks]
        return pareto_loss(per_task, minimum, parameters, all_reduce)

    def _values(
        self,
        index: int,
        loss: NamedLoss,
        logits: Tensor,
        label: Tensor,
        samples: Samples,
        weight: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(losses, their weights), one for each sample, or for each list of a list-wise loss."""
        options = loss.options
        if loss.kind == LISTWISE:
            groups, number = _groups(loss, samples, logits.device)
            scale = self.log_scales[str(index)]
            values = losses.listwise_rank_loss(logits, label, groups, number, log_scale=scale)
            return values, _list_weights(weight, groups, number)
        if loss.kind == "jrc_loss":
            groups, number = _groups(loss, samples, logits.device)
            values = losses.jrc_loss(logits, label, groups, number, alpha=options.alpha)
        elif loss.kind == "binary_cross_entropy":
            smoothing = options.label_smoothing
            values = losses.binary_cross_entropy(logits, label, label_smoothing=smoothing)
        elif loss.kind == "softmax_cross_entropy":
            smoothing = options.label_smoothing
            values = losses.softmax_cross_entropy(logits, label, label_smoothing=smoothing)
        elif loss.kind == "binary_focal_loss":
            values = losses.binary_focal_loss(
                logits, label, gamma=options.gamma, alpha=options.alpha
            )
        else:
            values = losses.l2_loss(logits, label)
        return values, torch.ones_like(values) if weight is None else weight.to(values.dtype)

    def _check_labels(self, task: TaskSpec, label: Tensor, batch: Batch) -> None:
        """The first labels of each task are looked at: a wrong column is wrong from the start."""
        if task.name not in self._unchecked or not label.numel():
            return
        self._unchecked.discard(task.name)
        low, high = (float(x) for x in torch.aminmax(label))
        top = {"binary": 1, "classes": task.num_class - 1}.get(task.output)
        whole = task.output != "classes" or not bool((label != label.floor()).any())
        finite = math.isfinite(low) and math.isfinite(high)
        if finite and (top is None or (low >= 0 and high <= top and whole)):
            return
        whole_or_not = "whole numbers" if task.output == "classes" else "numbers"
        expected = "numbers" if top is None else f"{whole_or_not} from 0 to {top}"
        where = f" First rows: {batch.source.describe(3)}." if batch.source is not None else ""
        raise UserError(
            f"task {task.name!r}: label {task.label_name!r} holds values from {low:g} to {high:g}; "
            f"{_names(task)} needs {expected}. Name another column, or set task_bitmask.{where}"
        )


def _losses_of(task: TaskSpec) -> list[NamedLoss]:
    found: list[NamedLoss] = []
    for index, config in enumerate(task.losses):
        kind = config.WhichOneof("loss")
        if kind not in KNOWN:
            shown = kind or config.WhichOneof("sid_loss") or "nothing"
            path = f"task {task.name!r} losses[{index}]"
            problem = Problem(path, shown, f"one of {', '.join(KNOWN)}", "Choose one of them.")
            raise ConfigError([problem])
        name = f"{kind}{task.suffix}"
        if any(loss.name == name for loss in found):
            path = f"task {task.name!r} losses[{index}]"
            raise ConfigError([Problem(path, f"{kind} again", "each loss once", "Remove one.")])
        least, most = _CLASSES.get(kind, (1, 1))
        if not least <= task.num_class <= most:
            path, wanted = f"task {task.name!r} num_class", f"{least} or more for {kind}"
            wanted = f"{most} for {kind}" if least == most else wanted
            problem = Problem(path, str(task.num_class), wanted, "Set it, or use another loss.")
            raise ConfigError([problem])
        weight = config.weight * task.weight
        found.append(NamedLoss(name, kind, task, getattr(config, kind), weight))
    _ = task.output  # raises when the losses contradict each other
    return found


def _names(task: TaskSpec) -> str:
    return ", ".join(str(loss.WhichOneof("loss")) for loss in task.losses)


def _stack(terms: Mapping[str, LossTerm]) -> tuple[Tensor, Tensor]:
    total = torch.stack([term.total for term in terms.values()])
    return total, total.new_tensor([term.weight for term in terms.values()])


def _divide(total: Tensor, count: Tensor) -> Tensor:
    """total / count, and 0 with zero gradient where count is 0."""
    counts = count > 0
    return torch.where(
        counts, total / torch.where(counts, count, torch.ones_like(count)), total * 0
    )


def _samples_of_labels(task: TaskSpec, batch: Batch) -> Samples:
    """The samples as the label column has them, before there are outputs."""
    label = batch.labels[task.label_name]
    if isinstance(label, Ragged):
        return Samples(batch.num_rows, label.values.size(0), label.lengths, batch.raw_ids)
    return Samples(batch.num_rows, label.size(0), None, batch.raw_ids)


def _device(task: TaskSpec, batch: Batch) -> torch.device:
    label = batch.labels[task.label_name]
    return label.values.device if isinstance(label, Ragged) else label.device


def _groups(loss: NamedLoss, samples: Samples, device: torch.device) -> tuple[Tensor, int]:
    """(group of each sample [N], number of groups): sessions, else the candidates of a row."""
    name = loss.options.session_name
    if name:
        ids = samples.ids(name, f"{loss.kind}.session_name of task {loss.task.name!r}")
        distinct, groups = torch.unique(ids, return_inverse=True)
        return groups, distinct.numel()
    if samples.repeat is None:
        raise UserError(
            f"{loss.kind} of task {loss.task.name!r} has no session_name, and the model's rows are "
            "single samples: name the feature whose value makes rows one session."
        )
    return samples.rows(device), samples.num_rows


def _list_weights(weight: Tensor | None, groups: Tensor, num_groups: int) -> Tensor:
    """[G]: the mean weight of each list's samples; 1 without weights, empty lists included."""
    if weight is None:
        return torch.ones(num_groups, device=groups.device)
    zeros = weight.new_zeros(num_groups)
    sizes = zeros.index_add(0, groups, torch.ones_like(weight))
    return zeros.index_add(0, groups, weight) / sizes.clamp(min=1)
