# SPDX-License-Identifier: Apache-2.0
"""The metrics of all tasks: built from the config, fed batch by batch, merged over ranks.

Values are keyed by TorchEasyRec's names: "auc_is_click", "recall@5_is_click"; "auc" where there is
one unnamed task. An undefined value is NaN and said in one warning that names metric and task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tzgen.config.tasks import TaskSpec, metric_problem
from tzgen.data.batch import Batch
from tzgen.errors import ConfigError, Problem
from tzgen.log import LOGGER, warn_once
from tzgen.models.base import Outputs
from tzgen.objectives import confidence
from tzgen.objectives import metric_kinds as kinds
from tzgen.objectives.metric_base import Metric, SumMetric, TaskView
from tzgen.objectives.predictions import logits_of, score_of
from tzgen.objectives.views import label_of, samples_of

AllGather = Callable[[Any], list[Any]]
TRAIN_BINS = 200  # of a training AUC without thresholds: the past cannot fade from exact scores
_PAIRS = "every pair is counted; sample_ratio, max_pairs and max_pairs_per_group have no effect"


@dataclass(frozen=True)
class _Measured:
    """A metric of a task, and the name of its value."""

    key: str
    task: TaskSpec
    metric: Metric


class TaskMetrics:
    """Evaluation metrics. With `confidence_key` (a raw id, the user) intervals can be asked for.

    Every rank updates its own; `compute` and `intervals` merge them over ranks first, through
    `all_gather`, which returns a picklable value of every rank. After a merge there is no update.
    """

    def __init__(
        self,
        tasks: Sequence[TaskSpec],
        *,
        confidence_key: str = "",
        bootstrap_samples: int = 0,
        seed: int = 0,
    ) -> None:
        self.tasks = tuple(tasks)
        self.confidence_key, self.samples, self.seed = confidence_key, bootstrap_samples, seed
        self._measured = _build(self.tasks, [task.metrics for task in tasks], make_metric)
        self._merged = False

    def update(self, outputs: Outputs, batch: Batch) -> None:
        """Add a batch of this rank."""
        if self._merged:
            raise ValueError("TaskMetrics are merged already: make new ones for another evaluation")
        with torch.no_grad():
            for task in self.tasks:
                mine = [m.metric for m in self._measured if m.task is task]
                if not mine:
                    continue
                view = view_of(task, outputs, batch)
                users = None
                if self.confidence_key and self.samples:
                    users = view.samples.ids(self.confidence_key, "eval_config.confidence_key")
                for metric in mine:
                    metric.update(view, users)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What this rank has accumulated, by metric: host tensors."""
        return {measured.key: measured.metric.state() for measured in self._measured}

    def merge(self, all_gather: AllGather) -> None:
        """Make the metrics those of all ranks, on every rank; a second call changes nothing."""
        if self._merged:
            return
        states = all_gather(self.state())
        self._merged = True
        if len(states) > 1:
            for measured in self._measured:
                measured.metric.load([state[measured.key] for state in states])

    def compute(self, all_gather: AllGather | None = None) -> dict[str, float]:
        """Metric -> value. NaN where it is undefined."""
        if all_gather is not None:
            self.merge(all_gather)
        values = {measured.key: measured.metric.compute() for measured in self._measured}
        for measured in self._measured:
            if math.isnan(values[measured.key]):
                LOGGER.warning(
                    "%s of task %r is undefined: it needs samples of both classes (or, for pairs, "
                    "of different labels) and finite scores",
                    measured.metric.name,
                    measured.task.name,
                )
        return values

    def intervals(self, all_gather: AllGather | None = None) -> dict[str, tuple[float, float]]:
        """Metric -> 95 % interval over resampled users; {} without key or samples.

        A metric of whole batches (xauc with in_batch) has none.
        """
        if all_gather is not None:
            self.merge(all_gather)
        metrics = {measured.key: measured.metric for measured in self._measured}
        return confidence.intervals(metrics, samples=self.samples, seed=self.seed)


class TrainMetrics:
    """Metrics of training batches in which the past fades: every decay_step updates,
    value = decay_rate * value + (1 - decay_rate) * (value of those updates). An AUC fades by its
    histogram. Source: TorchEasyRec's TrainMetricWrapper and DecayAUC.
    """

    def __init__(self, tasks: Sequence[TaskSpec]) -> None:
        self.tasks = tuple(tasks)
        self._measured = _build(
            self.tasks, [task.train_metrics for task in tasks], make_train_metric
        )
        configs = {m.key: config for m, config in zip(self._measured, _flat(tasks), strict=True)}
        self._decay = {
            key: (config.decay_rate, config.decay_step) for key, config in configs.items()
        }
        self._steps = 0
        self._values: dict[str, float] = {}
        self._past: dict[str, Tensor] = {}

    def update(
        self,
        outputs: Outputs,
        batch: Batch,
        all_reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Add a training batch. All ranks call it in step; `all_reduce` sums a tensor over them,
        once for all metrics that are due."""
        self._steps += 1
        with torch.no_grad():
            for task in self.tasks:
                mine = [m.metric for m in self._measured if m.task is task]
                view = view_of(task, outputs, batch) if mine else None
                for metric in mine:
                    assert view is not None
                    metric.update(view)
            due = [m for m in self._measured if self._steps % self._decay[m.key][1] == 0]
            if due:
                self._fade(due, all_reduce)

    def compute(self) -> dict[str, float]:
        """Metric -> faded value; a metric whose first decay_step is still to come is absent."""
        return dict(self._values)

    def state(self, all_reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, Any]:
        """Where they stand, as plain numbers; all ranks must call."""
        pending = {}
        for measured in self._measured:
            sums = _sums(measured).sums
            pending[measured.key] = (sums if all_reduce is None else all_reduce(sums)).tolist()
        values = {k: None if math.isnan(v) else v for k, v in self._values.items()}
        past = {key: sums.tolist() for key, sums in self._past.items()}
        return {"updates": self._steps, "values": values, "past": past, "pending": pending}

    def load(self, entry: Mapping[str, Any], *, rank: int = 0) -> None:
        """Go on from a `state`, whatever the number of ranks; metrics that it lacks start anew.

        What all ranks had summed up since the last decay_step is rank 0's.
        """
        self._steps = entry["updates"]
        for measured in self._measured:
            key, metric = measured.key, _sums(measured)
            pending = torch.tensor(entry["pending"].get(key, ()), dtype=torch.float64)
            if pending.size() != metric.sums.size():
                continue  # another number of thresholds
            metric.sums = pending if rank == 0 else torch.zeros_like(pending)
            if key in entry["values"]:
                value = entry["values"][key]
                self._values[key] = math.nan if value is None else value
            if key in entry["past"]:
                self._past[key] = torch.tensor(entry["past"][key], dtype=torch.float64)

    def _fade(
        self, due: Sequence[_Measured], all_reduce: Callable[[Tensor], Tensor] | None
    ) -> None:
        metrics = [_sums(measured) for measured in due]
        flat = torch.cat([metric.sums for metric in metrics])
        flat = flat if all_reduce is None else all_reduce(flat)
        parts = flat.split([metric.sums.numel() for metric in metrics])
        for measured, metric, sums in zip(due, metrics, parts, strict=True):
            key, rate = measured.key, self._decay[measured.key][0]
            if isinstance(metric, kinds.BinnedAUC):
                past = self._past.get(key)
                sums = sums if past is None else rate * past.to(sums) + (1 - rate) * sums
                self._past[key] = sums
                self._values[key] = metric.value(sums.cpu().numpy())
            else:
                new, old = metric.value(sums.cpu().numpy()), self._values.get(key, math.nan)
                if not math.isnan(new):
                    self._values[key] = new if math.isnan(old) else rate * old + (1 - rate) * new
            metric.sums = torch.zeros_like(metric.sums)


def view_of(task: TaskSpec, outputs: Outputs, batch: Batch) -> TaskView:
    """The task's share of a batch, for metrics."""
    logits = logits_of(outputs, task).detach()
    samples = samples_of(batch, task, logits, outputs.repeat)
    return TaskView(task, logits, score_of(task, logits), label_of(task, batch, samples), samples)


def make_metric(config: Any, task: TaskSpec, path: str) -> Metric:
    """The metric of a MetricConfig; ConfigError where it cannot measure the task's output."""
    kind = config.WhichOneof("metric")
    _check(kind, task, path)
    options = getattr(config, kind)
    if kind == "auc":
        if not options.thresholds:
            return kinds.ExactAUC("auc")
        return kinds.BinnedAUC("auc", num_class=task.num_class, thresholds=options.thresholds)
    if kind == "multiclass_auc":
        average, bins = options.average, options.thresholds
        if not bins:
            return kinds.ExactMulticlassAUC(kind, average=average)
        return kinds.BinnedAUC(kind, num_class=task.num_class, thresholds=bins, average=average)
    if kind == "accuracy":
        return kinds.Accuracy(kind, threshold=options.threshold, top_k=options.top_k)
    if kind == "normalized_entropy":
        return kinds.NormalizedEntropy(kind, eta=options.eta)
    if kind in ("recall_at_k", "ndcg_at_k"):
        return _at_k(kind, options)
    if kind == "grouped_auc":
        return kinds.GroupedAUC(kind, grouping_key=options.grouping_key)
    if kind == "grouped_xauc":
        if options.HasField("max_pairs_per_group"):
            warn_once(f"grouped_xauc: {_PAIRS}")
        return kinds.GroupedXAUC(kind, grouping_key=options.grouping_key)
    if kind == "xauc":
        return _xauc(options)
    return {
        "mean_absolute_error": kinds.MeanAbsoluteError,
        "mean_squared_error": kinds.MeanSquaredError,
    }[kind](kind)


def make_train_metric(config: Any, task: TaskSpec, path: str) -> Metric:
    """The metric of a TrainMetricConfig: one of sums, so that it can fade."""
    kind = config.WhichOneof("metric")
    if kind == "auc":
        _check(kind, task, path)
        bins = config.auc.thresholds or TRAIN_BINS
        return kinds.BinnedAUC(kind, num_class=task.num_class, thresholds=bins)
    if kind == "xauc":
        _check(kind, task, path)
        return kinds.BatchXAUC(kind)
    return make_metric(config, task, path)


def _at_k(kind: str, options: Any) -> Metric:
    name = f"{kind.removesuffix('_at_k')}@{options.top_k}"
    if kind == "recall_at_k":
        return kinds.RecallAtK(name, top_k=options.top_k)
    if options.grouping_key:
        key = options.grouping_key
        return kinds.GroupedNDCGAtK(name, top_k=options.top_k, grouping_key=key)
    return kinds.NDCGAtK(name, top_k=options.top_k)


def _xauc(options: Any) -> Metric:
    if options.HasField("sample_ratio") or options.HasField("max_pairs"):
        warn_once(f"xauc: {_PAIRS}")
    return kinds.BatchXAUC("xauc") if options.in_batch else kinds.XAUC("xauc")


def _check(kind: str | None, task: TaskSpec, path: str) -> None:
    """Refuse what has no meaning; validation has, where the config came through it."""
    problem = metric_problem(path, kind, task)
    if problem is not None:
        raise ConfigError([problem])


def _build(
    tasks: Sequence[TaskSpec],
    configs: Sequence[Sequence[Any]],
    make: Callable[[Any, TaskSpec, str], Metric],
) -> list[_Measured]:
    measured: list[_Measured] = []
    for task, mine in zip(tasks, configs, strict=True):
        for index, config in enumerate(mine):
            path = f"task {task.name!r} metrics[{index}]"
            metric = make(config, task, path)
            key = f"{metric.name}{task.suffix}"
            if any(other.key == key for other in measured):
                remedy = "Two metrics cannot share a name: remove one."
                raise ConfigError(
                    [Problem(path, metric.name, "a metric not listed before", remedy)]
                )
            measured.append(_Measured(key, task, metric))
    return measured


def _flat(tasks: Sequence[TaskSpec]) -> list[Any]:
    return [config for task in tasks for config in task.train_metrics]


def _sums(measured: _Measured) -> SumMetric:
    assert isinstance(measured.metric, SumMetric), f"{measured.key} is not made of sums"
    return measured.metric
