# SPDX-License-Identifier: Apache-2.0
"""MMoE: experts shared by all tasks, a gate and a tower for each (Ma et al., KDD 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf.message import Message
from torch import Tensor

from tzgen.config.tasks import TaskSpec
from tzgen.models.base import MODELS
from tzgen.models.multi_task import MultiTaskModel, make_mmoe


@MODELS.register("mmoe")
class MMoE(MultiTaskModel):
    """The pointwise ranker of the module docstring; the mixture is modules.experts.MMoE."""

    def __init__(
        self,
        config: Message,
        *,
        widths: Mapping[str, tuple[int, ...]],
        tasks: Sequence[TaskSpec],
        kernel: str,
    ) -> None:
        super().__init__(config, widths=widths, tasks=tasks, kernel=kernel)
        self.experts = make_mmoe(config, self.in_features, len(tasks))
        self.add_towers(config.task_towers, self.experts.output_dim)

    def task_inputs(self, x: Tensor) -> list[Tensor]:
        inputs: list[Tensor] = self.experts(x)
        return inputs
