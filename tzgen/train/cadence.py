# SPDX-License-Identifier: Apache-2.0
"""When a run logs, evaluates and saves: pure functions of the step and the epoch."""

from __future__ import annotations

from typing import Any


class Cadence:
    """Reads a TrainConfig proto.

    Evaluation has a cadence of its own (eval_steps, eval_epochs); without one it happens at every
    checkpoint. `evaluates` is False when there is nothing to evaluate on. `only_at_end`: a model
    that is fitted after its last batch has nothing to save or measure before.
    """

    def __init__(self, config: Any, *, evaluates: bool, only_at_end: bool = False) -> None:
        self._config = config
        self._evaluates = evaluates
        self._never = only_at_end
        self._own = bool(config.eval_steps or config.eval_epochs)

    def logs(self, step: int) -> bool:
        return step == 1 or _divides(self._config.log_step_count_steps, step)

    def saves_at(self, step: int) -> bool:
        if self._config.save_checkpoints_epochs and not self._config.HasField(
            "save_checkpoints_steps"
        ):
            return False
        return not self._never and _divides(self._config.save_checkpoints_steps, step)

    def saves_after(self, epoch: int) -> bool:
        """`epoch` counts the epochs that are finished."""
        return not self._never and _divides(self._config.save_checkpoints_epochs, epoch)

    def evaluates_at(self, step: int) -> bool:
        due = _divides(self._config.eval_steps, step) if self._own else self.saves_at(step)
        return self._evaluates and due and not self._never

    def evaluates_after(self, epoch: int) -> bool:
        due = _divides(self._config.eval_epochs, epoch) if self._own else self.saves_after(epoch)
        return self._evaluates and due and not self._never


def _divides(period: int, count: int) -> bool:
    return bool(period) and count % period == 0
