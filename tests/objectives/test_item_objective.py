# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy over codes, against a plain loop; what has no loss; accumulation."""

from __future__ import annotations

import math

import pytest
import torch

from tzgen.data.batch import Batch
from tzgen.errors import ConfigError
from tzgen.models.base import Outputs
from tzgen.objectives.item_objective import NAME, ItemObjective
from tzgen.protos.model_pb2 import ModelConfig


def outputs(seed: int = 0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.tensor([[1, 0], [2, -1], [-1, -1], [0, 3]])
    logits = {
        f"logits_{s}": torch.randn(4, size, generator=generator) for s, size in enumerate((3, 4))
    }
    return Outputs({}, {**logits, "targets": targets})


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_mean_over_codes_that_have_a_loss(temperature: float) -> None:
    out = outputs()
    objective = ItemObjective(ModelConfig(), label_temperature=temperature)
    term = objective(out, Batch(num_rows=4))[NAME]
    losses = []
    for row in range(4):
        for level in range(2):
            target = int(out.tensors["targets"][row, level])
            if target >= 0:
                scores = [x / temperature for x in out.tensors[f"logits_{level}"][row].tolist()]
                losses.append(math.log(sum(map(math.exp, scores))) - scores[target])
    assert float(term.count) == len(losses) == 5
    assert float(term.mean) == pytest.approx(sum(losses) / 5, rel=1e-6)
    assert float(objective.combine({NAME: term})) == pytest.approx(sum(losses) / 5, rel=1e-6)


def test_a_batch_that_teaches_nothing_has_loss_and_gradient_0() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    out = Outputs({}, {"logits_0": logits, "targets": torch.full((2, 1), -1)})
    objective = ItemObjective(ModelConfig(), label_temperature=1.0)
    loss = objective.combine(objective(out, Batch(num_rows=2)))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_accumulation_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="gradient_accumulation_steps"):
        ItemObjective(ModelConfig(), label_temperature=1.0).counts(Batch(num_rows=2))
