# SPDX-License-Identifier: Apache-2.0
"""Shared embeddings and a tower for each task: the baseline of multi-task models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf.message import Message
from torch import Tensor

from tzgen.config.tasks import TaskSpec
from tzgen.models.base import MODELS
from tzgen.models.multi_task import MultiTaskModel


@MODELS.register("simple_multi_task")
class SimpleMultiTask(MultiTaskModel):
    """Every tower reads all groups, side by side."""

    def __init__(
        self,
        config: Message,
        *,
        widths: Mapping[str, tuple[int, ...]],
        tasks: Sequence[TaskSpec],
        kernel: str,
    ) -> None:
        super().__init__(config, widths=widths, tasks=tasks, kernel=kernel)
        self.add_towers(config.task_towers, self.in_features)

    def task_inputs(self, x: Tensor) -> list[Tensor]:
        return [x] * len(self.towers)
