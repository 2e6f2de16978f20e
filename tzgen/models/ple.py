# SPDX-License-Identifier: Apache-2.0
"""PLE: levels of own and shared experts, then a tower for each task (Tang et al., RecSys 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf.message import Message
from torch import Tensor

from tzgen.config.tasks import TaskSpec
from tzgen.errors import Problem
from tzgen.models.base import MODELS
from tzgen.models.multi_task import MultiTaskModel, extraction_problems, make_ple


@MODELS.register("ple")
class PLE(MultiTaskModel):
    """The pointwise ranker of the module docstring; the levels are modules.experts.PLE."""

    def __init__(
        self,
        config: Message,
        *,
        widths: Mapping[str, tuple[int, ...]],
        tasks: Sequence[TaskSpec],
        kernel: str,
    ) -> None:
        super().__init__(config, widths=widths, tasks=tasks, kernel=kernel)
        self.experts = make_ple(config, self.in_features, len(tasks))
        self.add_towers(config.task_towers, self.experts.output_dim)

    def task_inputs(self, x: Tensor) -> list[Tensor]:
        inputs: list[Tensor] = self.experts(x)
        return inputs

    @classmethod
    def check(
        cls, model_config: Message, widths: Mapping[str, tuple[int, ...]] | None = None
    ) -> list[Problem]:
        problems = super().check(model_config, widths)
        return problems + extraction_problems(model_config.ple, "model_config.ple")
