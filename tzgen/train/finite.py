# SPDX-License-Identifier: Apache-2.0
"""A loss that is NaN or infinite ends the run before a checkpoint can hold what it did."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from tzgen.build import StepOutput
from tzgen.data.batch import Source
from tzgen.errors import UserError
from tzgen.train.environment import Env


class LossWatch:
    """Losses of steps that nobody has looked at yet: reading one waits for the device.

    `latest` is this rank's newest loss that was looked at.
    """

    def __init__(self, env: Env, model_dir: Path) -> None:
        self._env, self._model_dir = env, model_dir
        self._waiting: list[tuple[int, dict[str, Tensor], Source | None]] = []
        self.latest = math.nan

    def add(self, step: int, output: StepOutput) -> None:
        """Remember the losses of `step` (a count from 1) and which rows they came from."""
        parts = {name: term.total for name, term in output.terms.items()}
        self._waiting.append((step, {"loss": output.loss, **parts}, output.batch.source))

    def check(self) -> None:
        """Look at all that were added; all ranks must call. Raises UserError on every rank with the
        first bad step's files and rows."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        values = torch.stack([losses["loss"] for _, losses, _ in waiting]).tolist()
        self.latest = values[-1]
        bad = [index for index, value in enumerate(values) if not math.isfinite(value)]
        found = _describe(*waiting[bad[0]]) if bad else ""
        if not self._env.any(bool(found)):
            return
        told = "; ".join(text for text in self._env.gather(found) if text)
        raise UserError(
            f"{told}. Look at these rows for "
            "missing or extreme values, lower the learning rate, or clip gradients "
            f"(train_config.grad_clipping). Checkpoints in {self._model_dir} are from before."
        )


def _describe(step: int, losses: dict[str, Tensor], source: Source | None) -> str:
    values = {name: float(value) for name, value in losses.items()}
    broken = {name: value for name, value in values.items() if not math.isfinite(value)}
    rows = source.describe(limit=64) if source is not None else "rows of unknown origin"
    return f"step {step}: {', '.join(f'{k} is {v}' for k, v in broken.items())} on {rows}"
