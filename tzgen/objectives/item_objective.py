# SPDX-License-Identifier: Apache-2.0
"""The objective of generators: cross-entropy over the codes of the item that follows.

The model leaves tensors logits_<s> [M, V_s] for every level s and targets int64 [M, S], -1 where
nothing is to be learnt (unknown items, a suffix without meaning). The loss is the mean over codes:
every level of every item weighs the same, on all ranks together. With a label temperature t the
logits are divided by t (LETTER's ranking-guided loss).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tzgen.config.tasks import TaskSpec
from tzgen.data.batch import Batch
from tzgen.errors import ConfigError, Problem
from tzgen.models.base import Outputs
from tzgen.objectives.objective import LossTerm, NamedLoss, Objective

NAME = "code_cross_entropy"


class ItemObjective(Objective):
    """One loss, "code_cross_entropy"."""

    def __init__(self, model_config: Any, *, label_temperature: float) -> None:
        nobody = TaskSpec(name="", label_name="", losses=())
        loss = NamedLoss(NAME, NAME, nobody, None, 1.0)
        super().__init__((), model_config, losses=(loss,))
        self.label_temperature = label_temperature

    def forward(self, outputs: Outputs, batch: Batch) -> dict[str, LossTerm]:
        targets = outputs.tensors["targets"]
        total = targets.new_zeros((), dtype=torch.float32)
        for level, target in enumerate(targets.unbind(1)):
            logits = outputs.tensors[f"logits_{level}"].float() / self.label_temperature
            total = total + F.cross_entropy(logits, target, ignore_index=-1, reduction="sum")
        return {NAME: LossTerm(total, (targets >= 0).sum().to(total.dtype), 1.0)}

    def counts(self, batch: Batch) -> Tensor:
        """Only a forward knows which items the bundle holds: batches are not cut."""
        problem = Problem(
            "train_config.gradient_accumulation_steps",
            "more than one with a generator",
            "one: how many codes a batch has is known only when it was read",
            "Lower data_config.batch_size and the learning rate, or use more ranks.",
        )
        raise ConfigError([problem])
