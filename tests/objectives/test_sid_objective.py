# SPDX-License-Identifier: Apache-2.0
"""ModelConfig.losses of a tokenizer as terms; what does not fit is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from google.protobuf import text_format
from torch import Tensor

from tzgen.data.batch import Batch
from tzgen.errors import ConfigError
from tzgen.models.base import Outputs
from tzgen.objectives.objective import LossTerm
from tzgen.objectives.sid_objective import SidObjective
from tzgen.protos.model_pb2 import ModelConfig


def config(losses: str) -> Any:
    return text_format.Parse(f"sid_rqvae {{}} {losses}", ModelConfig())


def outputs(n: int = 6) -> Outputs:
    torch.manual_seed(0)
    tensors = {
        "inputs": torch.randn(n, 4),
        "decoded": torch.randn(n, 4, requires_grad=True),
        "encoded": torch.randn(n, 3, requires_grad=True),
        "cumulative": torch.randn(n, 2, 3, requires_grad=True),
        "quantized": torch.randn(n, 3, requires_grad=True),
        "diversity": torch.rand(n),
        "pair_inputs": torch.randn(n, 4),
        "pair_decoded": torch.randn(n, 4),
        "is_pair": torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])[:n],
        "collaborative": torch.randn(n, 3),
    }
    return Outputs({}, tensors)


ALL = """
losses { recon_loss {} weight: 2.0 }
losses { commitment_loss { latent_weight: [1.0, 0.25] } }
losses { contrastive_loss {} }
losses { contrastive_recon_loss {} }
losses { collaborative_loss {} }
losses { diversity_loss {} weight: 0.5 }
"""


def test_the_total_is_the_weighted_sum_of_means() -> None:
    objective, found = SidObjective(config(ALL)), outputs()
    terms = objective(found, Batch(num_rows=6))
    assert list(terms) == [
        "recon_loss", "commitment_loss", "contrastive_loss", "contrastive_recon_loss",
        "collaborative_loss", "diversity_loss",
    ]  # fmt: skip
    recon = (found.tensors["inputs"] - found.tensors["decoded"]).square().mean()
    torch.testing.assert_close(terms["recon_loss"].mean, recon)
    assert terms["contrastive_loss"].count == 3 and terms["recon_loss"].count == 6
    total = objective.combine(terms)
    by_hand = sum(term.mean * term.weight for term in terms.values())
    torch.testing.assert_close(total, by_hand)
    total.backward()
    assert all(scale.grad is not None for scale in objective.pair_scales)
    assert found.tensors["cumulative"].grad is not None


def test_counts_of_a_batch_go_to_the_device_of_the_losses() -> None:
    objective = SidObjective(config("losses { recon_loss {} } losses { commitment_loss {} }"))
    one = torch.ones((), device="meta")
    terms = {name: LossTerm(one, one, 1.0) for name in ("recon_loss", "commitment_loss")}
    counts = objective.counts(Batch(num_rows=6))
    assert objective.combine(terms, counts=counts).device.type == "meta"


def test_other_ranks_are_asked_for_rows_that_a_loss_reads() -> None:
    """By those losses alone, and in training, where ranks go in step."""
    asked: list[str] = []

    def gather(named: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], int]:
        asked.extend(named)
        return {name: torch.cat([rows, rows]) for name, rows in named.items()}, 6

    for losses, names in (
        ("losses { recon_loss {} } losses { commitment_loss {} } losses { diversity_loss {} }", []),
        ("losses { recon_loss {} } losses { contrastive_recon_loss {} }", ["inputs"]),
        ("losses { collaborative_loss {} }", ["vectors"]),
        (
            "losses { contrastive_loss {} }",
            ["units", "pair_units", "inputs", "pair_inputs", "is_pair"],
        ),
    ):
        asked.clear()
        objective = SidObjective(config(losses), gather)
        own = objective.eval()(outputs(), Batch(num_rows=6))
        assert asked == []
        both = objective.train()(outputs(), Batch(num_rows=6))
        assert asked == names
        if "recon_loss {} } losses { contr" in losses:  # everybody twice: log 2 more
            name = "contrastive_recon_loss"
            more = (both[name].mean - own[name].mean).detach()
            assert float(more) == pytest.approx(math.log(2), abs=1e-5)


def test_a_fitted_model_has_no_terms_and_a_total_of_zero() -> None:
    objective = SidObjective(config(""))
    terms = objective(outputs(), Batch(num_rows=6))
    assert terms == {} and objective.combine(terms) == 0.0


def test_counts_are_rows_and_pairs_cannot_be_counted_before() -> None:
    assert SidObjective(config("losses { recon_loss {} }")).counts(Batch(num_rows=6)).tolist() == [
        6
    ]
    with pytest.raises(ConfigError, match="gradient_accumulation_steps"):
        SidObjective(config("losses { contrastive_loss {} }")).counts(Batch(num_rows=6))


@pytest.mark.parametrize(
    ("losses", "text"),
    [
        ("losses { binary_cross_entropy {} }", "binary_cross_entropy"),
        ("losses { recon_loss {} } losses { recon_loss {} }", "recon_loss again"),
        ("losses { commitment_loss { latent_weight: 1.0 } }", "two numbers"),
        ("losses {}", "nothing"),
    ],
)
def test_losses_that_do_not_fit_are_refused(losses: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        SidObjective(config(losses))


def test_a_loss_whose_tensors_the_model_does_not_give_is_named() -> None:
    objective = SidObjective(config("losses { collaborative_loss {} }"))
    with pytest.raises(ConfigError, match="no quantized, collaborative"):
        objective(Outputs({}, {}), Batch(num_rows=1))
