# SPDX-License-Identifier: Apache-2.0
"""What the pointwise multi-task rankers share: one input vector an example, one tower a task.

N examples (candidates, or rows), W total width of the groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from google.protobuf.message import Message
from torch import Tensor, nn

from tzgen.config.options import options
from tzgen.config.tasks import TaskSpec
from tzgen.embeddings import Groups
from tzgen.errors import Problem, UserError
from tzgen.models.base import Model, Outputs
from tzgen.modules.experts import PLE, ExtractionOptions, MMoE, TaskTower
from tzgen.modules.mlp import MLPOptions

CANDIDATE = "candidate"
REPEAT = f"{CANDIDATE}.lengths"


class MultiTaskModel(Model):
    """Groups, side by side in configured order -> `task_inputs` -> a TaskTower each.

    A subclass sets `self.towers` with `add_towers` and says in `task_inputs` what each tower reads.
    """

    pointwise: ClassVar[bool] = True
    reads_any_group: ClassVar[bool] = True

    def __init__(
        self,
        config: Message,
        *,
        widths: Mapping[str, tuple[int, ...]],
        tasks: Sequence[TaskSpec],
        kernel: str,
    ) -> None:
        super().__init__(config, widths=widths, tasks=tasks, kernel=kernel)
        self.group_names = tuple(widths)
        self.in_features = sum(sum(width) for width in widths.values())
        self.task_names = tuple(task.name for task in tasks)
        self.towers = nn.ModuleList()

    def add_towers(self, messages: Sequence[Message], in_features: int) -> None:
        """One TaskTower for each TaskTower message, reading [N, in_features]."""
        for message in messages:
            mlp = options(MLPOptions, message.mlp) if message.HasField("mlp") else None
            self.towers.append(TaskTower(in_features, num_class=message.num_class, mlp=mlp))

    def task_inputs(self, x: Tensor) -> list[Tensor]:
        """What each tower reads, in task order, from x [N, W]."""
        raise NotImplementedError

    def forward(self, groups: Groups) -> Outputs:
        x = torch.cat([_vectors(groups, name) for name in self.group_names], dim=1)
        inputs = self.task_inputs(x)
        logits = {
            name: tower(y)
            for name, tower, y in zip(self.task_names, self.towers, inputs, strict=True)
        }
        repeat = groups.get(REPEAT)
        return Outputs(logits=logits, repeat=repeat if isinstance(repeat, Tensor) else None)

    @classmethod
    def check(
        cls, model_config: Message, widths: Mapping[str, tuple[int, ...]] | None = None
    ) -> list[Problem]:
        """Every group must be one vector an example: DEEP or WIDE, or the candidates themselves."""
        model = model_config.WhichOneof("model")
        problems = super().check(model_config, widths)
        for index, group in enumerate(model_config.feature_groups):
            kinds = group.DESCRIPTOR.fields_by_name["group_type"].enum_type.values_by_number
            kind = kinds[group.group_type].name
            if kind not in ("DEEP", "WIDE") and group.group_name != CANDIDATE:
                problems.append(
                    Problem(
                        f"model_config.feature_groups[{index}].group_type",
                        kind,
                        f"DEEP or WIDE: {model} reads one vector an example",
                        "Make it DEEP, which pools its sequences, or add sequence_encoders to it.",
                    )
                )
        return problems


def make_experts(
    message: Message, in_features: int, num_tasks: int
) -> tuple[MMoE | PLE | None, int]:
    """(module, width of each task's vector) of a FusionMTLTower's `experts`; (None, in_features)
    where it has none."""
    chosen = message.WhichOneof("experts")
    if chosen is None:
        return None, in_features
    options_of = getattr(message, chosen)
    build = make_mmoe if chosen == "mmoe" else make_ple
    module = build(options_of, in_features, num_tasks)
    return module, module.output_dim


def make_mmoe(message: Message, in_features: int, num_tasks: int) -> MMoE:
    """From MMoE or MMoEExperts, whose fields have the same names."""
    gate = message.HasField("gate_mlp")
    return MMoE(
        in_features,
        num_tasks=num_tasks,
        num_expert=message.num_expert,
        expert_mlp=options(MLPOptions, message.expert_mlp),
        gate_mlp=options(MLPOptions, message.gate_mlp) if gate else None,
    )


def make_ple(message: Message, in_features: int, num_tasks: int) -> PLE:
    """From PLE or PLEExperts."""
    networks = message.extraction_networks
    levels = [options(ExtractionOptions, network) for network in networks]
    return PLE(in_features, num_tasks=num_tasks, levels=levels)


def extraction_problems(message: Message, path: str) -> list[Problem]:
    """Levels of PLE whose own and shared experts end in different widths."""
    problems = []
    for index, network in enumerate(message.extraction_networks):
        own, shared = network.task_expert_net.hidden_units, network.share_expert_net.hidden_units
        if network.share_num and own and shared and own[-1] != shared[-1]:
            problems.append(
                Problem(
                    f"{path}.extraction_networks[{index}].share_expert_net.hidden_units",
                    f"last width {shared[-1]}",
                    f"{own[-1]}, as task_expert_net: a gate adds both",
                    "Make the last hidden_units of both equal.",
                )
            )
    return problems


def _vectors(groups: Groups, name: str) -> Tensor:
    value = groups.get(name)
    if not isinstance(value, Tensor):
        found = "nothing" if value is None else type(value).__name__
        raise UserError(f"group {name!r}: found {found}; expected one vector an example (DEEP)")
    return value
