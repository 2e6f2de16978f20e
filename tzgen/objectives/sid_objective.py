# SPDX-License-Identifier: Apache-2.0
"""The objective of semantic-ID tokenizers: ModelConfig.losses over what the model leaves.

Tensors that a model gives (N rows, all float32):
    inputs [N, D], decoded [N, D]                recon_loss, contrastive_recon_loss
    encoded [N, d], cumulative [N, S, d]         commitment_loss
    quantized [N, d], with the encoder's gradient    collaborative_loss
    pair_inputs, pair_decoded [N, D], is_pair [N]    contrastive_loss
    collaborative [N, d]                         collaborative_loss
    diversity [N]                                diversity_loss
Contrasts are with the rows of all ranks, which are gathered here, for the losses that read them
alone. In evaluation, where ranks do not go in step, they are with this rank's.
A model that is fitted (Model.fits) has none; its reconstruction error is still measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tzgen.config.tasks import TaskSpec
from tzgen.data.batch import Batch
from tzgen.errors import ConfigError, Problem
from tzgen.models.base import Outputs
from tzgen.objectives import sid_losses
from tzgen.objectives.objective import LossTerm, NamedLoss, Objective

NEEDS: Mapping[str, tuple[str, ...]] = {
    "recon_loss": ("inputs", "decoded"),
    "commitment_loss": ("encoded", "cumulative"),
    "contrastive_loss": ("inputs", "decoded", "pair_inputs", "pair_decoded", "is_pair"),
    "contrastive_recon_loss": ("inputs", "decoded"),
    "collaborative_loss": ("quantized", "collaborative"),
    "diversity_loss": ("diversity",),
}
Gather = Callable[[Mapping[str, Tensor]], tuple[Mapping[str, Tensor], int]]
FIRST_SCALE = math.log(1 / 0.07)


def alone(named: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], int]:
    """The `gather` of a single process."""
    return named, 0


class SidObjective(Objective):
    """Named losses of a tokenizer. Temperatures of contrastive_loss are parameters here.

    `gather`: named rows of this rank -> those of all ranks, and where this rank's start.
    """

    def __init__(self, model_config: Any, gather: Gather = alone) -> None:
        super().__init__((), model_config, losses=_losses_of(model_config))
        self._gather = gather
        self.pair_scales = nn.ParameterList()
        if any(loss.kind == "contrastive_loss" for loss in self.losses):
            self.pair_scales.extend(
                nn.Parameter(torch.tensor(FIRST_SCALE)) for _ in ("self", "other", "own")
            )

    def forward(self, outputs: Outputs, batch: Batch) -> dict[str, LossTerm]:
        """Loss name -> LossTerm of this rank's batch."""
        return {loss.name: self._term(loss, outputs.tensors) for loss in self.losses}

    def counts(self, batch: Batch) -> Tensor:
        """Rows, for every loss; contrastive_loss counts pairs, which only a forward knows."""
        if any(loss.kind == "contrastive_loss" for loss in self.losses):
            problem = Problem(
                "train_config.gradient_accumulation_steps",
                "more than one with contrastive_loss",
                "one: a pair's negatives are the rows of its batch",
                "Raise data_config.batch_size instead.",
            )
            raise ConfigError([problem])
        return torch.full((len(self.losses),), float(batch.num_rows))

    def _term(self, loss: NamedLoss, tensors: Mapping[str, Tensor]) -> LossTerm:
        missing = [name for name in NEEDS[loss.kind] if name not in tensors]
        if missing:
            problem = Problem(
                f"model_config.losses {loss.kind}",
                f"a model that gives no {', '.join(missing)}",
                "what the loss reads",
                "Remove the loss, or set what it needs in the model: see its comment in "
                "protos/loss.proto.",
            )
            raise ConfigError([problem])
        values = self._each(loss.kind, loss.options, tensors)
        weights = torch.ones_like(values)
        if loss.kind == "contrastive_loss":
            weights = tensors["is_pair"].to(values.dtype)
        return LossTerm((values * weights).sum(), weights.sum(), loss.weight)

    def _each(self, kind: str, options: Any, tensors: Mapping[str, Tensor]) -> Tensor:
        """[N]."""
        if kind == "recon_loss":
            return sid_losses.distance(tensors["decoded"], tensors["inputs"], options.recon_type)
        if kind == "commitment_loss":
            to_code, to_encoder = tuple(options.latent_weight) or (1.0, 0.5)
            return sid_losses.commitment_loss(
                tensors["encoded"],
                tensors["cumulative"],
                to_code=to_code,
                to_encoder=to_encoder,
                kind=options.commitment_type,
            )
        if kind == "diversity_loss":
            return tensors["diversity"]
        if kind == "contrastive_recon_loss":
            everywhere, first = self._everywhere({"inputs": tensors["inputs"]})
            return sid_losses.contrastive_recon_loss(
                tensors["decoded"],
                tensors["inputs"],
                everywhere["inputs"],
                first,
                temperature=options.temperature,
            )
        if kind == "collaborative_loss":
            everywhere, first = self._everywhere({"vectors": tensors["collaborative"]})
            return sid_losses.collaborative_loss(
                tensors["quantized"],
                everywhere["vectors"],
                first,
                temperature=options.temperature,
            )
        return self._pairs(tensors)

    def _pairs(self, tensors: Mapping[str, Tensor]) -> Tensor:
        limit = math.log(sid_losses.LARGEST_SCALE)
        scale = [s.clamp(max=limit).exp() for s in self.pair_scales]
        everywhere, first = self._everywhere(
            {
                "units": torch.nn.functional.normalize(tensors["decoded"], dim=1),
                "pair_units": torch.nn.functional.normalize(tensors["pair_decoded"], dim=1),
                **{name: tensors[name] for name in ("inputs", "pair_inputs", "is_pair")},
            }
        )
        names = ("units", "pair_units", "inputs", "pair_inputs")
        units, pair_units, inputs, pair_inputs = (everywhere[name] for name in names)
        return sid_losses.pair_contrast(
            (tensors["decoded"], tensors["pair_decoded"]),
            (units, pair_units, inputs, pair_inputs),
            tensors["is_pair"] > 0.5,
            everywhere["is_pair"] > 0.5,
            first,
            (scale[0], scale[1], scale[2]),
        )

    def _everywhere(self, named: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], int]:
        """The rows that a contrast is with, and where this rank's start among them."""
        return self._gather(named) if self.training else alone(named)


def _losses_of(model_config: Any) -> tuple[NamedLoss, ...]:
    """The configured losses; each once, and only those of tokenizers."""
    nobody = TaskSpec(name="", label_name="", losses=())
    found: list[NamedLoss] = []
    for index, config in enumerate(model_config.losses):
        path, kind = f"model_config.losses[{index}]", config.WhichOneof("sid_loss")
        if kind is None:
            shown = config.WhichOneof("loss") or "nothing"
            expected = f"one of {', '.join(NEEDS)}"
            problem = Problem(path, shown, expected, "Tokenizers have no label to learn.")
            raise ConfigError([problem])
        if any(loss.kind == kind for loss in found):
            raise ConfigError([Problem(path, f"{kind} again", "each loss once", "Remove one.")])
        if kind == "commitment_loss" and len(config.commitment_loss.latent_weight) not in (0, 2):
            given = list(config.commitment_loss.latent_weight)
            wanted = "two numbers: towards the code, towards the encoder"
            remedy = "For example latent_weight: 1.0 latent_weight: 0.5."
            raise ConfigError([Problem(f"{path}.commitment_loss", str(given), wanted, remedy)])
        found.append(NamedLoss(kind, kind, nobody, getattr(config, kind), config.weight))
    return tuple(found)
