# SPDX-License-Identifier: Apache-2.0
"""RQ-VAE: it learns, its switches do something, and combinations that cannot work are refused."""

from __future__ import annotations

import pytest
import torch
from sid_world import GROUP, items, model_config, problems_of, tokenizer
from torch import Tensor

from tzgen.data.batch import Batch
from tzgen.errors import UserError
from tzgen.models.base import Model, Outputs
from tzgen.models.sid_rqvae import quantizer_options
from tzgen.objectives.sid_metrics import SidMetrics
from tzgen.objectives.sid_objective import SidObjective

BODY = "embed_dim: 4 hidden_dims: 16 codebook: [8, 8]"
LOSSES = "losses { recon_loss {} } losses { commitment_loss {} }"
WIDTHS = {"deep": (8,)}


def train(text: str, x: Tensor, steps: int = 60) -> tuple[Model, dict[str, float]]:
    """A few steps of Adam on all items; the model and its metrics."""
    model, objective = tokenizer(text, WIDTHS), SidObjective(model_config(text))
    if model.start_rows:
        model.prepare(iter([{"deep": x}]))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam([*trained, *objective.parameters()], lr=0.01)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        terms = objective(model({"deep": x}), Batch(num_rows=len(x)))
        objective.combine(terms).backward()
        optimizer.step()
        model.end_step()
    model.eval()
    metrics = SidMetrics(model.codebook)
    metrics.update(model({"deep": x}), Batch(num_rows=len(x)))
    return model, metrics.compute()


@pytest.mark.parametrize(
    "more",
    [
        "kmeans_init: true",
        "kmeans_init: true sinkhorn_config { enabled: false }",
        "kmeans_init: true rotation_trick: true",
        "kmeans_init: true ema {} dead_code_restart { interval: 5 }",
        "kmeans_init: true forward_mode: 'gumbel_softmax' gumbel_temperature { end: 0.2 steps: 9 }",
        "kmeans_init: true normalize_residuals: true distance_type: 'cosine'",
        "dead_code_restart { interval: 5 threshold: 0.2 } sinkhorn_config { enabled: false }",
        "diversity { num_clusters: 2 interval: 5 } kmeans_init: true",
    ],
)
def test_every_form_learns_and_uses_its_codes(more: str) -> None:
    x = items()
    losses = LOSSES + (" losses { diversity_loss {} weight: 0.01 }" if "diversity" in more else "")
    text = f"sid_rqvae {{ {BODY} {more} }} {losses}"
    before = train(text, x, steps=0)[1]
    model, after = train(text, x)
    assert after["mse"] < 0.8 * before["mse"]
    assert min(after["used_codes_0"], after["used_codes_1"]) >= 0.5  # nothing collapsed
    codes = model({"deep": x}).decoded["codes"]
    assert torch.equal(codes, model.predict({"deep": x}).decoded["codes"])


def test_micro_batches_are_put_together() -> None:
    """As gradient accumulation does with what the model gave for each."""
    text = f"sid_rqvae {{ {BODY} sinkhorn_config {{ enabled: false }} }} {LOSSES}"
    model, x = tokenizer(text, WIDTHS).train(), items(30)
    parts = [model({"deep": part}) for part in x.split(10)]
    whole = Outputs.concatenate(parts)
    assert torch.equal(whole.tensors["inputs"], x)
    assert torch.equal(whole.decoded["codes"], model({"deep": x}).decoded["codes"])


def test_cost_and_letter_losses_train() -> None:
    groups = GROUP + GROUP.replace('"deep"', '"cf"').replace('"x"', '"y"')
    text = (
        f'sid_rqvae {{ {BODY} feature_group: "deep" collaborative_feature_group: "cf" }} {LOSSES} '
        "losses { contrastive_recon_loss {} } losses { collaborative_loss {} weight: 0.1 }"
    )
    model = tokenizer(text, {"deep": (8,), "cf": (4,)}, groups)
    objective = SidObjective(model_config(text, groups))
    outputs = model.train()({"deep": items(), "cf": torch.randn(300, 4)})
    terms = objective(outputs, Batch(num_rows=300))
    objective.combine(terms).backward()
    assert set(terms) == {
        "recon_loss", "commitment_loss", "contrastive_recon_loss", "collaborative_loss"
    }  # fmt: skip
    assert all(p.grad is not None for p in model.parameters())


def test_both_items_of_a_pair_are_one_step_of_the_schedules() -> None:
    groups = GROUP + "".join(GROUP.replace('"deep"', f'"{name}"') for name in ("pair", "flag"))
    text = (
        f'sid_rqvae {{ {BODY} feature_group: "deep" contrastive_config {{ pair_feature_group: '
        f'"pair" pair_flag_feature_group: "flag" }} }} {LOSSES} losses {{ contrastive_loss {{}} }}'
    )
    widths = {"deep": (8,), "pair": (8,), "flag": (1,)}
    model = tokenizer(text, widths, groups).train()
    objective = SidObjective(model_config(text, groups))
    rows = {"deep": items(30), "pair": items(30, seed=1), "flag": torch.ones(30, 1)}
    for step in range(1, 4):
        terms = objective(model(rows), Batch(num_rows=30))
        model.end_step()
        assert int(model.quantizer.steps) == step
    objective.combine(terms).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("more", ["", "ema {}", "rotation_trick: true"])
def test_collaborative_vectors_train_the_encoder(more: str) -> None:
    """Also where running means move the codebooks, so that no gradient of theirs is left."""
    groups = GROUP + GROUP.replace('"deep"', '"cf"').replace('"x"', '"y"')
    text = (
        f'sid_rqvae {{ {BODY} {more} feature_group: "deep" collaborative_feature_group: "cf" }} '
        "losses { collaborative_loss {} } losses { commitment_loss {} weight: 0 }"
    )
    model = tokenizer(text, {"deep": (8,), "cf": (4,)}, groups)
    objective = SidObjective(model_config(text, groups))
    outputs = model.train()({"deep": items(), "cf": torch.randn(300, 4)})
    objective.combine(objective(outputs, Batch(num_rows=300))).backward()
    gradients = [parameter.grad for parameter in model.encoder.parameters()]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in gradients)


def test_a_start_from_rows_is_without_dropout() -> None:
    text = f"sid_rqvae {{ {BODY} kmeans_init: true dropout_ratio: 0.5 }} {LOSSES}"
    model = tokenizer(text, WIDTHS).train()
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model.prepare(iter([{"deep": items()}]))
        found.append([book.detach().clone() for book in model.quantizer.codebooks])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert model.training and model.encoder.training


def test_a_start_from_too_few_rows_is_refused() -> None:
    text = f"sid_rqvae {{ {BODY} kmeans_init: true }} {LOSSES}"
    for rows in ([{"deep": items(5)}], []):
        with pytest.raises(UserError, match=r"kmeans_init: .*[50] points for 8 centroids"):
            tokenizer(text, WIDTHS).prepare(iter(rows))


def test_an_unset_sinkhorn_is_on_as_upstream_and_off_with_gumbel() -> None:
    message = model_config(f"sid_rqvae {{ {BODY} }}").sid_rqvae
    chosen = quantizer_options(message).sinkhorn
    assert chosen is not None and (chosen.enabled, chosen.iters, chosen.epsilon) == (True, 5, 10.0)
    message = model_config(f"sid_rqvae {{ {BODY} forward_mode: 'gumbel_softmax' }}").sid_rqvae
    assert quantizer_options(message).sinkhorn is None


@pytest.mark.parametrize(
    ("more", "losses", "text"),
    [
        ("forward_mode: 'soft'", LOSSES, "forward_mode: found 'soft'"),
        ("distance_type: 'dot'", LOSSES, "distance_type: found 'dot'"),
        ("forward_mode: 'gumbel_softmax' rotation_trick: true", LOSSES, "rotation_trick"),
        ("forward_mode: 'gumbel_softmax' ema {}", LOSSES, "ema with gumbel_softmax"),
        ("gumbel_temperature { end: 0 }", LOSSES, "temperatures above 0"),
        ("dead_code_restart { interval: 0 }", LOSSES, "dead_code_restart.interval"),
        ("diversity {}", LOSSES, "diversity without diversity_loss"),
        (
            "diversity {} ema {}",
            LOSSES + " losses { diversity_loss {} }",
            "ema with diversity_loss",
        ),
        ("", LOSSES + " losses { collaborative_loss {} }", "collaborative_feature_group"),
        ("", "losses { recon_loss {} }", "codebooks never move"),
    ],
)
def test_what_cannot_work_is_refused(more: str, losses: str, text: str) -> None:
    found = problems_of(f"sid_rqvae {{ {BODY} {more} }} {losses}", WIDTHS)
    assert any(text in problem for problem in found), found


def test_gumbel_softmax_moves_codebooks_without_a_commitment_loss() -> None:
    text = f"sid_rqvae {{ {BODY} forward_mode: 'gumbel_softmax' }} losses {{ recon_loss {{}} }}"
    assert problems_of(text, WIDTHS) == []


def test_widths_of_other_groups_are_checked() -> None:
    groups = GROUP + "".join(
        GROUP.replace('"deep"', f'"{name}"') for name in ("pair", "flag", "cf")
    )
    text = (
        f'sid_rqvae {{ {BODY} feature_group: "deep" collaborative_feature_group: "cf" '
        'contrastive_config { pair_feature_group: "pair" pair_flag_feature_group: "flag" } } '
        f"{LOSSES} losses {{ contrastive_loss {{}} }} losses {{ collaborative_loss {{}} }}"
    )
    widths = {"deep": (8,), "pair": (7,), "flag": (1,), "cf": (5,)}
    found = problems_of(text, widths, groups)
    assert len(found) == 2 and "one encoder reads both" in found[0] and "embed_dim" in found[1]
