# SPDX-License-Identifier: Apache-2.0
"""MMoE and PLE against explicit loops over examples, tasks and experts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tzgen.modules.experts import (
    PLE,
    ExtractionNetwork,
    ExtractionOptions,
    MMoE,
    TaskTower,
)
from tzgen.modules.mlp import MLPOptions


def mlp(*units: int) -> MLPOptions:
    return MLPOptions(
        hidden_units=units,
        dropout_ratio=(),
        activation="nn.Tanh",
        use_bn=False,
        bias=True,
        use_ln=False,
    )


def level(own: int, shared: int | None, *units: int) -> ExtractionOptions:
    return ExtractionOptions("x", own, shared, mlp(*units), mlp(*units) if shared else None)


def through(module: nn.Module, x: Tensor) -> Tensor:
    """A stack of Linear and Tanh, one example, layer by layer."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            x = layer.weight @ x + layer.bias
        elif isinstance(layer, nn.Tanh):
            x = torch.tanh(x)
    return x


def weighted(scores: Tensor, outputs: list[Tensor]) -> Tensor:
    total = sum(torch.exp(score) for score in scores)
    return sum(torch.exp(s) / total * y for s, y in zip(scores, outputs, strict=True))  # type: ignore[return-value]


def mmoe_by_loops(module: MMoE, x: Tensor) -> list[Tensor]:
    tasks = []
    for gate in module.gates:
        rows = [
            weighted(through(gate, row), [through(expert, row) for expert in module.experts])
            for row in x
        ]
        tasks.append(torch.stack(rows))
    return tasks


def ple_by_loops(module: PLE, x: Tensor) -> list[Tensor]:
    rows: list[list[Tensor]] = []
    for row in x:
        tasks, shared = [row] * module.num_tasks, row
        for network in module.levels:
            assert isinstance(network, ExtractionNetwork)
            common = [through(expert, shared) for expert in network.shared_experts]
            own = [
                [through(expert, vector) for expert in experts]  # type: ignore[union-attr]
                for vector, experts in zip(tasks, network.task_experts, strict=True)
            ]
            gates = zip(tasks, network.task_gates, own, strict=True)
            mixed = [weighted(through(gate, t), [*mine, *common]) for t, gate, mine in gates]
            if network.shared_gate is not None:
                everyone = [y for mine in own for y in mine] + common
                shared = weighted(through(network.shared_gate, shared), everyone)
            tasks = mixed
        rows.append(tasks)
    return [torch.stack([row[k] for row in rows]) for k in range(module.num_tasks)]


def compare(got: list[Tensor], want: list[Tensor], module: nn.Module, x: Tensor) -> None:
    """Outputs and every gradient, by name."""
    names = {"x": x, **dict(module.named_parameters())}
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    probe = [torch.randn_like(a) for a in got]
    mine, theirs = (
        torch.autograd.grad(
            sum((y * p).sum() for y, p in zip(side, probe, strict=True)),  # type: ignore[arg-type]
            list(names.values()),
            retain_graph=True,
        )
        for side in (got, want)
    )
    for name, a, b in zip(names, mine, theirs, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("gate", [None, mlp(5, 3)], ids=["linear gate", "gate mlp"])
@pytest.mark.parametrize(("tasks", "experts"), [(1, 1), (3, 4)])
def test_mmoe(gate: MLPOptions | None, tasks: int, experts: int) -> None:
    module = MMoE(
        6, num_tasks=tasks, num_expert=experts, expert_mlp=mlp(7, 4), gate_mlp=gate
    ).double()
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert module.output_dim == 4
    if experts > 1:  # a softmax over one expert has no gradient
        compare(module(x), mmoe_by_loops(module, x), module, x)
    else:
        torch.testing.assert_close(module(x)[0], module.experts[0](x))


@pytest.mark.parametrize(
    "levels",
    [
        [level(2, 1, 4)],
        [level(2, 3, 5, 4), level(1, 2, 3)],
        [level(2, 1, 4), level(2, 2, 4), level(3, 1, 6)],
        [level(2, None, 4), level(2, 2, 3)],  # the second level's shared experts read the gate
        [level(2, 2, 3), level(2, 0, 4)],
    ],
    ids=["one", "two", "three", "shared later", "shared first"],
)
@pytest.mark.parametrize("tasks", [1, 3])
def test_ple(levels: list[ExtractionOptions], tasks: int) -> None:
    module = PLE(6, num_tasks=tasks, levels=levels).double()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert module.output_dim == levels[-1].task_expert_net.hidden_units[-1]
    compare(module(x), ple_by_loops(module, x), module, x)


def test_gates_that_nothing_reads_are_not_built() -> None:
    module = PLE(6, num_tasks=2, levels=[level(2, 1, 4), level(2, 1, 4), level(2, None, 4)])
    assert [network.shared_gate is None for network in module.levels] == [False, True, True]


def test_without_shared_experts_tasks_are_independent() -> None:
    module = PLE(6, num_tasks=2, levels=[level(2, None, 4), level(2, None, 4)])
    first = module(torch.randn(3, 6))[0].sum()
    used = torch.autograd.grad(first, list(module.parameters()), allow_unused=True)
    names = [name for name, _ in module.named_parameters()]
    touched = {name for name, grad in zip(names, used, strict=True) if grad is not None}
    assert touched == {name for name in names if "task_experts.0" in name or "task_gates.0" in name}


@pytest.mark.parametrize("num_class", [1, 3])
@pytest.mark.parametrize("layers", [None, mlp(8, 5)])
def test_task_tower(num_class: int, layers: MLPOptions | None) -> None:
    tower = TaskTower(6, num_class=num_class, mlp=layers)
    x = torch.randn(4, 6)
    want = tower.linear(x if tower.mlp is None else tower.mlp(x))
    assert tower(x).shape == ((4,) if num_class == 1 else (4, 3))
    torch.testing.assert_close(tower(x).reshape(want.shape), want)


def test_no_examples() -> None:
    for module in (
        MMoE(6, num_tasks=2, num_expert=3, expert_mlp=mlp(4)),
        PLE(6, num_tasks=2, levels=[level(1, 1, 4)]),
    ):
        assert [y.shape for y in module(torch.zeros(0, 6))] == [(0, 4)] * 2


def test_half_precision_gates_sum_to_one() -> None:
    module = MMoE(4, num_tasks=1, num_expert=3, expert_mlp=mlp(2)).bfloat16()
    x = torch.randn(3, 4, dtype=torch.bfloat16)
    assert module(x)[0].dtype == torch.bfloat16


def test_refusals() -> None:
    with pytest.raises(ValueError, match="0 experts for 2 tasks"):
        MMoE(6, num_tasks=2, num_expert=0, expert_mlp=mlp(4))
    with pytest.raises(ValueError, match="no extraction_networks"):
        PLE(6, num_tasks=2, levels=[])
    uneven = ExtractionOptions("x", 1, 1, mlp(4), mlp(5))
    with pytest.raises(ValueError, match=r"share_expert_net ends in 5, task_expert_net in 4"):
        PLE(6, num_tasks=2, levels=[uneven])
