# SPDX-License-Identifier: Apache-2.0
"""Schedules against torch's own schedulers and hand-worked values."""

from __future__ import annotations

import pytest
import torch
from google.protobuf import text_format

from tzgen.errors import UserError
from tzgen.protos.optimizer_pb2 import DenseOptimizer
from tzgen.train.schedules import schedule_of


def rates(text: str, base: float, count: int) -> list[float]:
    schedule = schedule_of(text_format.Parse(text, DenseOptimizer()), base)
    return [schedule.at(step, 0) for step in range(count)]


def torch_rates(build, base: float, count: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    scheduler = build(optimizer)
    seen = []
    for _ in range(count):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_unset_and_constant_keep_the_rate() -> None:
    assert rates("", 0.5, 3) == [0.5] * 3
    assert rates("constant_learning_rate {}", 0.5, 3) == [0.5] * 3


def test_cosine_matches_torch() -> None:
    mine = rates("cosine_annealing_learning_rate { T_max: 10 min_learning_rate: 0.1 }", 1.0, 11)
    theirs = torch_rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=10, eta_min=0.1), 1.0, 11
    )
    assert mine == pytest.approx(theirs)


@pytest.mark.parametrize("factor", [1, 2])
def test_warm_restarts_match_torch(factor: int) -> None:
    text = f"cosine_annealing_warm_restarts_learning_rate {{ T_0: 4 T_mult: {factor} }}"
    theirs = torch_rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=4, T_mult=factor),
        1.0,
        30,
    )
    assert rates(text, 1.0, 30) == pytest.approx(theirs)


def test_exponential_decay_in_jumps_and_smooth() -> None:
    jumps = (
        "exponential_decay_learning_rate { decay_size: 2 decay_factor: 0.5 min_learning_rate: 0.2 }"
    )
    assert rates(jumps, 1.0, 7) == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25, 0.2])
    smooth = "exponential_decay_learning_rate { decay_size: 2 decay_factor: 0.25 staircase: false }"
    assert rates(smooth, 1.0, 3) == pytest.approx([1, 0.5, 0.25])


def test_warmup_comes_before_the_schedule() -> None:
    text = """exponential_decay_learning_rate {
        decay_size: 1 decay_factor: 0.5 warmup_size: 4 warmup_learning_rate: 0.2 }"""
    assert rates(text, 1.0, 7) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.5, 0.25])


def test_manual_steps() -> None:
    text = "manual_step_learning_rate { schedule_sizes: [2, 4] learning_rates: [0.5, 0.1] }"
    assert rates(text, 1.0, 6) == pytest.approx([1, 1, 0.5, 0.5, 0.1, 0.1])
    warm = text.replace("}", "warmup: true }")
    assert rates(warm, 1.0, 6) == pytest.approx([1, 0.75, 0.5, 0.5, 0.1, 0.1])


def test_linear_decay_includes_the_warmup() -> None:
    text = "linear_decay_learning_rate { num_training_steps: 6 warmup_size: 2 }"
    assert rates(text, 1.0, 8) == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25, 0, 0])


def test_by_epoch_ignores_the_step() -> None:
    text = "exponential_decay_learning_rate { decay_size: 1 decay_factor: 0.5 by_epoch: true }"
    schedule = schedule_of(text_format.Parse(text, DenseOptimizer()), 1.0)
    assert [schedule.at(999, epoch) for epoch in range(3)] == pytest.approx([1, 0.5, 0.25])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("exponential_decay_learning_rate {}", "decay_size"),
        ("cosine_annealing_learning_rate {}", "T_max"),
        ("cosine_annealing_warm_restarts_learning_rate {}", "T_0"),
        ("linear_decay_learning_rate { num_training_steps: 2 warmup_size: 2 }", "warmup_size"),
        (
            "manual_step_learning_rate { schedule_sizes: [4, 2] learning_rates: [1, 2] }",
            "ascending",
        ),
        ("manual_step_learning_rate { schedule_sizes: [4] }", "equally long"),
    ],
)
def test_a_schedule_without_its_length_is_refused(text: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        rates(text, 1.0, 1)
