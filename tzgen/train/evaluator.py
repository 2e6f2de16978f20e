# SPDX-License-Identifier: Apache-2.0
"""Evaluation: the same module without gradients, metrics over ranks, intervals over users."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from tzgen.build import Pipeline
from tzgen.data.batch import Batch
from tzgen.data.loader import BatchLoader
from tzgen.train.environment import Env


@dataclass(frozen=True)
class Evaluation:
    """Metric values by name, the losses, and a (low, high) interval where one was asked for."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    num_rows: int = 0

    def table(self) -> str:
        """The metrics as lines of text, one a metric."""
        lines = []
        for name, value in sorted(self.metrics.items()):
            text = "undefined" if math.isnan(value) else f"{value:.5f}"
            if name in self.intervals:
                low, high = self.intervals[name]
                text += f"   [{low:.5f}, {high:.5f}]"
            lines.append(f"  {name:<40} {text}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Plain values; undefined metrics are null."""
        metrics = {k: None if math.isnan(v) else v for k, v in self.metrics.items()}
        return {"metrics": metrics, "intervals": self.intervals, "num_rows": self.num_rows}


@torch.no_grad()
def evaluate(
    pipeline: Pipeline,
    module: nn.Module,
    loader: BatchLoader,
    *,
    env: Env,
    max_batches: int | None = None,
    intervals: bool = False,
) -> Evaluation:
    """Run `module` over all batches of `loader`, or the first `max_batches`.

    `module` returns (loss, StepOutput) like TrainModule, whatever wraps it. Its train/eval mode is
    restored. With `intervals`, bootstrap intervals over eval_config.confidence_key are added.
    """
    was_training = module.training
    module.eval()
    metrics = pipeline.eval_metrics(intervals=intervals)
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    rows = 0
    try:
        for batch in _shown(loader, env, max_batches):
            _, output = module(batch.to(env.device, non_blocking=True))
            metrics.update(output.outputs, output.batch)
            rows += batch.num_rows
            for name, term in output.terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.total)
                counts[name] = counts.get(name, 0.0) + float(term.count)
    finally:
        module.train(was_training)
    gathered = env.gather((sums, counts, rows))
    losses = {
        f"loss_{name}": _ratio(
            sum(s[name] for s, _, _ in gathered), sum(c[name] for _, c, _ in gathered)
        )
        for name in sums
    }
    values = metrics.compute(env.gather)
    bounds = metrics.intervals(env.gather) if intervals else {}
    return Evaluation({**values, **losses}, bounds, sum(n for _, _, n in gathered))


def evaluated_names(pipeline: Pipeline) -> list[str]:
    """The metrics and losses that an evaluation of this pipeline will have."""
    losses = [f"loss_{loss.name}" for loss in pipeline.module.head.objective.losses]
    return [*pipeline.eval_metrics().state(), *losses]


def _shown(loader: BatchLoader, env: Env, max_batches: int | None) -> Iterator[Batch]:
    total = loader.num_batches(0)
    if max_batches is not None:
        total = max_batches if total is None else min(total, max_batches)
    batches = tqdm(
        loader.epoch(None, 0),
        total=total,
        desc="eval",
        unit="step",
        leave=False,
        disable=not (env.is_main and sys.stderr.isatty()),
    )
    for index, batch in enumerate(batches):
        if max_batches is not None and index >= max_batches:
            return
        yield batch


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan
