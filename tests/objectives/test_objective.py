# SPDX-License-Identifier: Apache-2.0
"""The objective: names, weights, exact averages over ranks, empty batches, impossible labels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objectives.cases import BCE, hstu_of, model_of, outputs_of, ragged, rows_batch
from tzgen.config.tasks import task_specs
from tzgen.data.batch import Batch
from tzgen.errors import ConfigError, UserError
from tzgen.objectives.objective import LossTerm, Objective
from tzgen.protos import model_pb2

CLICK = f'task_name: "click" label_name: "a" task_bitmask: 1 {BCE}'
LIKE = f'task_name: "like" label_name: "a" task_bitmask: 2 {BCE} weight: 0.5'


def objective_of(config: model_pb2.ModelConfig) -> Objective:
    return Objective(task_specs(config), config)


def one(body: str, more: str = "") -> Objective:
    return objective_of(model_of(f'tower_name: "t" label_name: "y" {body}', more=more))


class Ranks:
    """Every rank's counts, summed for each: what a process group does."""

    def __init__(self, counts: list[Tensor]) -> None:
        self.counts, self.calls = counts, 0

    def sum(self, tensor: Tensor) -> Tensor:
        self.calls += 1
        assert tensor.shape == self.counts[0].shape
        return torch.stack(self.counts).sum(0)


def test_names_means_and_task_weights() -> None:
    objective = objective_of(hstu_of(CLICK, LIKE))
    logits = {"click": torch.tensor([0.5, -1.0, 2.0]), "like": torch.tensor([0.1, 0.2, 0.3])}
    batch = Batch(2, labels={"a": ragged([1, 2, 3], [1, 2])})
    terms = objective(outputs_of(logits, [1, 2]), batch)
    assert list(terms) == ["binary_cross_entropy_click", "binary_cross_entropy_like"]
    click = F.binary_cross_entropy_with_logits(logits["click"], torch.tensor([1.0, 0, 1]))
    like = F.binary_cross_entropy_with_logits(logits["like"], torch.tensor([0.0, 1, 1]))
    assert terms["binary_cross_entropy_click"].mean.item() == pytest.approx(click.item())
    assert objective.combine(terms).item() == pytest.approx((click + 0.5 * like).item())


def test_loss_weight_times_task_weight() -> None:
    losses = "losses { binary_cross_entropy {} weight: 3 } losses { binary_focal_loss {} }"
    objective = one(f"{losses} weight: 2")
    terms = objective(outputs_of({"t": torch.zeros(2)}), rows_batch({"y": [0.0, 1.0]}))
    assert [term.weight for term in terms.values()] == [6.0, 2.0]


def test_sample_weights_are_a_weighted_mean() -> None:
    objective = one(
        f'{BCE} sample_weight_name: "w" task_space_indicator_label: "seen" out_task_space_weight: 0'
    )
    logits, weights = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([1.0, 3.0, 100.0])
    batch = rows_batch({"y": [0.0, 1.0, 1.0], "seen": [1, 1, 0]}, weights={"w": weights})
    term = objective(outputs_of({"t": logits}), batch)["binary_cross_entropy_t"]
    per_sample = F.binary_cross_entropy_with_logits(
        logits, torch.tensor([0.0, 1, 1]), reduction="none"
    )
    assert term.count.item() == 4.0
    assert term.mean.item() == pytest.approx((per_sample[0] + 3 * per_sample[1]).item() / 4)


@pytest.mark.parametrize("global_average", [True, False])
def test_average_over_ranks(global_average: bool) -> None:
    """Gradients averaged over ranks equal those of one process that holds all rows (or the mean of
    the ranks' means), and one all-reduce serves both tasks."""
    config = hstu_of(CLICK, LIKE, more=f"enable_global_average_loss: {str(global_average).lower()}")
    weight = nn.Parameter(torch.tensor([0.3, -0.2]))
    x, a = torch.randn(7, 2), torch.randint(0, 4, (7,))
    parts = [slice(0, 5), slice(5, 5), slice(5, 7)]  # three ranks, one of them without rows

    def loss(part: slice, ranks: Ranks | None) -> Tensor:
        objective = objective_of(config)
        y = x[part] @ weight
        batch = Batch(y.size(0), labels={"a": a[part]})
        terms = objective(outputs_of({"click": y, "like": 2 * y}), batch)
        reduce = None if ranks is None else ranks.sum
        return objective.combine(terms, all_reduce=reduce, world_size=3 if ranks else 1)

    ranks = Ranks([torch.full((2,), float(part.stop - part.start)) for part in parts])
    gradients = [torch.autograd.grad(loss(part, ranks), weight)[0] for part in parts]
    mean = torch.stack(gradients).mean(0)
    assert ranks.calls == (3 if global_average else 0)
    if global_average:
        expected = torch.autograd.grad(loss(slice(0, 7), None), weight)[0]
    else:
        local = [torch.autograd.grad(loss(part, None), weight)[0] for part in parts]
        expected = torch.stack(local).mean(0)
    torch.testing.assert_close(mean, expected)
    assert gradients[1].tolist() == [0.0, 0.0]


def test_micro_batches_add_up() -> None:
    """`counts` of the whole batch make the pieces' losses sum to the whole's."""
    body = f'{BCE} losses {{ listwise_rank_loss {{}} }} sample_weight_name: "w"'
    objective = objective_of(hstu_of(f'task_name: "t" label_name: "y" {body}'))
    logits = torch.randn(6)
    labels, weights = torch.tensor([1.0, 0, 0, 1, 0, 1]), torch.rand(6)

    def batch(low: int, high: int, lengths: list[int]) -> Batch:
        return Batch(
            len(lengths),
            labels={"y": ragged(labels[low:high], lengths)},
            weights={"w": ragged(weights[low:high], lengths)},
        )

    whole = batch(0, 6, [2, 0, 3, 1])
    terms = objective(outputs_of({"t": logits}, [2, 0, 3, 1]), whole)
    counts = objective.counts(whole)
    for term, count in zip(terms.values(), counts, strict=True):
        assert count.item() == pytest.approx(term.count.item())
    pieces = [(0, 2, [2, 0]), (2, 6, [3, 1])]
    outs = [objective(outputs_of({"t": logits[a:b]}, n), batch(a, b, n)) for a, b, n in pieces]
    total = sum(objective.combine(piece, counts=counts) for piece in outs)
    assert isinstance(total, Tensor)
    torch.testing.assert_close(total, objective.combine(terms))
    joined = LossTerm.total_of([piece["binary_cross_entropy_t"] for piece in outs])
    torch.testing.assert_close(joined.mean, terms["binary_cross_entropy_t"].mean)


ALL_LOSSES = [
    (BCE, 1),
    ("losses { binary_focal_loss {} }", 1),
    ("losses { softmax_cross_entropy { label_smoothing: 0.1 } } num_class: 3", 3),
    ("losses { l2_loss {} }", 1),
    ("losses { jrc_loss {} } num_class: 2", 2),
    ('losses { jrc_loss { session_name: "s" } } num_class: 2', 2),
    ("losses { listwise_rank_loss {} }", 1),
]


@pytest.mark.parametrize(
    ("body", "classes"), ALL_LOSSES, ids=[body[9:28] for body, _ in ALL_LOSSES]
)
@pytest.mark.parametrize("rows", [0, 2])
def test_no_samples_give_zero_loss_and_zero_gradient(body: str, classes: int, rows: int) -> None:
    objective = one(body)
    logits = torch.zeros((0, classes) if classes > 1 else (0,), requires_grad=True)
    batch = Batch(
        rows,
        labels={"y": ragged(torch.zeros(0, dtype=torch.long), [0] * rows)},
        raw_ids={"s": torch.arange(rows)},
    )
    anchor = nn.Parameter(torch.ones(1))
    terms = objective(outputs_of({"t": logits * anchor}, [0] * rows), batch)
    loss = objective.combine(terms)
    loss.backward()
    assert loss.item() == 0.0
    assert anchor.grad is not None and anchor.grad.item() == 0.0
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())


def test_zero_weights_everywhere_give_zero_not_nan() -> None:
    objective = one(f'{BCE} sample_weight_name: "w"')
    logits = torch.tensor([3.0, 1.0], requires_grad=True)
    batch = rows_batch({"y": [0.0, 1.0]}, weights={"w": torch.zeros(2)})
    loss = objective.combine(objective(outputs_of({"t": logits}), batch))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None and logits.grad.tolist() == [0.0, 0.0]


def test_sessions_by_name_and_by_row_agree() -> None:
    logits, labels = torch.randn(5, 2), torch.tensor([1, 0, 0, 1, 0])
    batch = Batch(
        3,
        labels={"y": ragged(labels, [3, 0, 2])},
        raw_ids={"s": torch.tensor([2**40, 5, -7])},
    )
    values = []
    for session in ("", 'session_name: "s"'):
        objective = one(f"losses {{ jrc_loss {{ {session} alpha: 0.2 }} }} num_class: 2")
        values.append(objective.combine(objective(outputs_of({"t": logits}, [3, 0, 2]), batch)))
    torch.testing.assert_close(values[0], values[1])
    rows_alone = rows_batch({"y": labels})
    with pytest.raises(UserError, match=r"jrc_loss of task 't' has no session_name"):
        one("losses { jrc_loss {} } num_class: 2")(outputs_of({"t": logits}), rows_alone)


def test_a_list_weighs_the_mean_of_its_samples() -> None:
    body = 'losses { listwise_rank_loss { temperature_init: 1 } } sample_weight_name: "w"'
    logits, label = torch.randn(5), torch.tensor([1, 0, 0, 1, 0])
    batch = Batch(
        3,
        labels={"y": ragged(label, [2, 0, 3])},
        weights={"w": ragged([1.0, 3.0, 1.0, 2.0, 6.0], [2, 0, 3])},
    )
    term = one(body)(outputs_of({"t": logits}, [2, 0, 3]), batch)["listwise_rank_loss_t"]
    first, last = torch.log_softmax(logits[:2], 0)[0], torch.log_softmax(logits[2:], 0)[1]
    assert term.count.item() == 2 + 3
    assert term.total.item() == pytest.approx(-(2 * first + 3 * last).item(), rel=1e-5)


def test_listwise_temperature_is_trained_when_asked() -> None:
    trained = one("losses { listwise_rank_loss { temperature_init: 0.5 } }")
    fixed = one("losses { listwise_rank_loss { learnable_temperature: false } }")
    assert [p.item() for p in trained.parameters()] == pytest.approx([math.log(2)])
    assert all(not p.requires_grad for p in fixed.parameters())


@pytest.mark.parametrize(
    ("body", "label", "expected"),
    [
        (BCE, [0.0, 4.0], "numbers from 0 to 1"),
        (BCE, [0.0, math.nan], "numbers from 0 to 1"),
        (
            "losses { softmax_cross_entropy {} } num_class: 3",
            [0.0, 3.0],
            "whole numbers from 0 to 2",
        ),
        (
            "losses { softmax_cross_entropy {} } num_class: 3",
            [0.5, 1.0],
            "whole numbers from 0 to 2",
        ),
        ("losses { l2_loss {} }", [0.0, math.inf], "numbers"),
    ],
)
def test_labels_that_a_loss_cannot_take(body: str, label: list[float], expected: str) -> None:
    objective = one(body)
    shape = (2, 3) if "num_class" in body else (2,)
    with pytest.raises(UserError, match=rf"task 't': label 'y'.*needs {expected}"):
        objective(outputs_of({"t": torch.zeros(shape)}), rows_batch({"y": label}))


def test_outputs_that_do_not_match_the_task() -> None:
    batch = rows_batch({"y": [0.0]})
    with pytest.raises(UserError, match=r"task 't' has no output; the model gives: other"):
        one(BCE)(outputs_of({"other": torch.zeros(1)}), batch)
    with pytest.raises(UserError, match=r"\(1, 3\); num_class 1"):
        one(BCE)(outputs_of({"t": torch.zeros(1, 3)}), batch)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("", "no losses"),
        (f"{BCE} {BCE}", "again"),
        ("losses { recon_loss {} }", "recon_loss"),
        ("losses { l2_loss {} } num_class: 3", "found 3; expected 1 for l2_loss"),
        ("losses { softmax_cross_entropy {} }", "found 1; expected 2 or more"),
        ("losses { jrc_loss {} } num_class: 3", "found 3; expected 2 for jrc_loss"),
    ],
)
def test_refused_losses(body: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        one(body)


def test_pareto_bounds_leave_room() -> None:
    low = f'label_name: "y" {BCE} pareto_min_loss_weight: 0.5'
    towers = [f'tower_name: "{name}" {low}' for name in "ab"]
    objective_of(model_of(*towers))  # without effect where the weights are fixed
    with pytest.raises(ConfigError, match="found 1; expected a sum below 1"):
        objective_of(model_of(*towers, more="use_pareto_loss_weight: true"))


def test_pareto_weighs_tasks_not_losses() -> None:
    towers = [f'tower_name: "{n}" label_name: "y" losses {{ l2_loss {{}} }}' for n in ("a", "b")]
    config = model_of(
        f"{towers[0]} pareto_min_loss_weight: 0.1",
        f"{towers[1]} losses {{ listwise_rank_loss {{ learnable_temperature: false }} }}",
        more="use_pareto_loss_weight: true",
    )
    objective = objective_of(config)
    w = nn.Parameter(torch.tensor([0.4, -0.1]))
    batch = Batch(1, labels={"y": ragged([1.0, 0.0, 0.0], [3])})
    x = torch.randn(3, 2)

    def terms() -> dict[str, LossTerm]:
        return objective(outputs_of({"a": x @ w, "b": x @ (3 * w)}, [3]), batch)

    a, b = terms()["l2_loss_a"].mean, sum(t.mean for n, t in terms().items() if n.endswith("_b"))
    assert isinstance(b, Tensor)
    rows = [torch.autograd.grad(loss, w)[0].double().numpy() for loss in (a, b)]
    total = objective.combine(terms(), parameters=[w])
    share = (total - b) / (a - b)  # total = s a + (1 - s) b
    norms = [
        float(((s * rows[0] + (1 - s) * rows[1]) ** 2).sum()) for s in (0.1, share.item(), 1.0)
    ]
    assert 0.1 - 1e-6 <= share.item() <= 1.0
    assert norms[1] <= min(norms[0], norms[2]) + 1e-6
    with pytest.raises(ValueError, match="parameters"):
        objective.combine(terms())
    objective.eval()
    torch.testing.assert_close(objective.combine(terms()), a + b)
