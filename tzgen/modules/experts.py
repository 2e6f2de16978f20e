# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts for several tasks: one input vector in, one vector a task out.

    MMoE    y_t = sum_e softmax(G_t x)_e f_e(x)
    PLE     levels of: a task's gate over its own and the shared experts, on the task's vector;
            between levels a shared gate over all experts, on the shared vector

N examples, D width, T tasks, E experts, H width of an expert's output.
Sources: Ma et al. KDD 2018 (MMoE); Tang et al. RecSys 2020 (PLE); options as in TorchEasyRec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tzgen.modules.mlp import MLP, MLPOptions


class MMoE(nn.Module):
    """[N, D] -> T times [N, output_dim]; every task weighs the same experts by its own gate."""

    def __init__(
        self,
        in_features: int,
        *,
        num_tasks: int,
        num_expert: int,
        expert_mlp: MLPOptions,
        gate_mlp: MLPOptions | None = None,
    ) -> None:
        super().__init__()
        if num_tasks < 1 or num_expert < 1:
            raise ValueError(f"MMoE of {num_expert} experts for {num_tasks} tasks")
        self.experts = _experts(in_features, num_expert, expert_mlp)
        self.gates = nn.ModuleList(
            _gate(in_features, num_expert, gate_mlp) for _ in range(num_tasks)
        )
        self.output_dim = expert_mlp.hidden_units[-1]

    def forward(self, x: Tensor) -> list[Tensor]:
        y_NEH = torch.stack([expert(x) for expert in self.experts], dim=1)
        return [_mix(gate(x), y_NEH) for gate in self.gates]


@dataclass(frozen=True)
class ExtractionOptions:
    """The proto ExtractionNetwork."""

    network_name: str | None
    expert_num_per_task: int
    share_num: int | None
    task_expert_net: MLPOptions
    share_expert_net: MLPOptions | None


class ExtractionNetwork(nn.Module):
    """One level of PLE: T task vectors [N, Dt], a shared one [N, Ds] -> the same, [N, output_dim].

    Without `emits_shared` (nothing above has shared experts) the second result is None.
    """

    def __init__(
        self,
        task_features: int,
        shared_features: int,
        *,
        num_tasks: int,
        options: ExtractionOptions,
        emits_shared: bool,
    ) -> None:
        super().__init__()
        own, shared = options.expert_num_per_task, options.share_num or 0
        if num_tasks < 1 or own < 1:
            raise ValueError(f"extraction network with {own} experts a task, {num_tasks} tasks")
        self.output_dim = options.task_expert_net.hidden_units[-1]
        self.shared_experts = nn.ModuleList()
        if shared:
            net = options.share_expert_net
            if net is None or net.hidden_units[-1] != self.output_dim:
                raise ValueError(
                    "a gate adds shared and own experts: they end in one width. share_expert_net "
                    f"ends in {net.hidden_units[-1] if net else None}, task_expert_net in "
                    f"{self.output_dim}"
                )
            self.shared_experts = _experts(shared_features, shared, net)
        self.task_experts = nn.ModuleList(
            _experts(task_features, own, options.task_expert_net) for _ in range(num_tasks)
        )
        self.task_gates = nn.ModuleList(
            nn.Linear(task_features, own + shared) for _ in range(num_tasks)
        )
        self.shared_gate = (
            nn.Linear(shared_features, num_tasks * own + shared) if emits_shared else None
        )

    def forward(
        self, tasks: Sequence[Tensor], shared: Tensor
    ) -> tuple[list[Tensor], Tensor | None]:
        common = [expert(shared) for expert in self.shared_experts]
        everything: list[Tensor] = []
        mixed: list[Tensor] = []
        for x, experts, gate in zip(tasks, self.task_experts, self.task_gates, strict=True):
            own = [expert(x) for expert in experts]  # type: ignore[attr-defined]
            mixed.append(_mix(gate(x), torch.stack([*own, *common], dim=1)))
            everything += own
        if self.shared_gate is None:
            return mixed, None
        return mixed, _mix(self.shared_gate(shared), torch.stack([*everything, *common], dim=1))


class PLE(nn.Module):
    """[N, D] -> T times [N, output_dim] through `levels`, input side first."""

    def __init__(
        self, in_features: int, *, num_tasks: int, levels: Sequence[ExtractionOptions]
    ) -> None:
        super().__init__()
        if not levels:
            raise ValueError("PLE has no extraction_networks")
        self.num_tasks = num_tasks
        self.levels = nn.ModuleList()
        task_features = shared_features = in_features
        for position, level in enumerate(levels):
            network = ExtractionNetwork(
                task_features,
                shared_features,
                num_tasks=num_tasks,
                options=level,
                emits_shared=any(above.share_num for above in levels[position + 1 :]),
            )
            self.levels.append(network)
            task_features = shared_features = network.output_dim
        self.output_dim = task_features

    def forward(self, x: Tensor) -> list[Tensor]:
        tasks, shared = [x] * self.num_tasks, x
        for level in self.levels:
            tasks, above = level(tasks, shared)
            if above is not None:  # else no level above reads it
                shared = above
        return tasks


class TaskTower(nn.Module):
    """[N, D] -> MLP -> Linear -> [N], or [N, num_class] with several classes."""

    def __init__(self, in_features: int, *, num_class: int, mlp: MLPOptions | None = None) -> None:
        super().__init__()
        self.mlp = None if mlp is None else MLP.from_options(in_features, mlp)
        self.linear = nn.Linear(in_features if mlp is None else mlp.hidden_units[-1], num_class)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x if self.mlp is None else self.mlp(x))
        return y.squeeze(1) if y.size(1) == 1 else y


def _experts(in_features: int, count: int, mlp: MLPOptions) -> nn.ModuleList:
    return nn.ModuleList(MLP.from_options(in_features, mlp) for _ in range(count))


def _gate(in_features: int, count: int, mlp: MLPOptions | None) -> nn.Sequential:
    if mlp is None:
        return nn.Sequential(nn.Linear(in_features, count))
    inner = MLP.from_options(in_features, mlp)
    return nn.Sequential(inner, nn.Linear(inner.output_dim, count))


def _mix(scores_NE: Tensor, y_NEH: Tensor) -> Tensor:
    """The experts' outputs, weighted by the softmax of the gate's scores: [N, H]."""
    weights = torch.softmax(scores_NE.float(), dim=1).to(y_NEH.dtype)
    return torch.bmm(weights.unsqueeze(1), y_NEH).squeeze(1)
