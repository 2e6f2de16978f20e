# SPDX-License-Identifier: Apache-2.0
"""Losses against their formulas written out in loops, and their worked examples."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from torch import Tensor

from tzgen.objectives import confidence, losses, pareto, ranking


@pytest.mark.parametrize("module", [losses, ranking, pareto, confidence])
def test_worked_examples(module: object) -> None:
    failures, examples = doctest.testmod(module)  # type: ignore[arg-type]
    assert examples > 0
    assert failures == 0


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy(smoothing: float) -> None:
    logits, labels = torch.tensor([-8.0, -1.0, 0.0, 8.0]), torch.tensor([0.0, 1.0, 0.3, 0.0])
    got = losses.binary_cross_entropy(logits, labels, label_smoothing=smoothing)
    for x, y, value in zip(logits.tolist(), labels.tolist(), got.tolist(), strict=True):
        q = y * (1 - smoothing) + smoothing / 2
        want = -q * math.log(sigmoid(x)) - (1 - q) * math.log(sigmoid(-x))
        assert value == pytest.approx(want, rel=1e-5, abs=1e-6)


def test_focal_loss_and_its_gradient() -> None:
    logits = torch.tensor([-3.0, 0.5, 2.0], requires_grad=True)
    labels = torch.tensor([1, 0, 1])
    got = losses.binary_focal_loss(logits, labels, gamma=1.5, alpha=0.3)
    got.sum().backward()
    assert logits.grad is not None
    for i, (x, y) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
        p = sigmoid(x)
        weight = 0.3 * (1 - p) ** 1.5 if y else 0.7 * p**1.5
        assert got[i].item() == pytest.approx(-weight * math.log(p if y else 1 - p), rel=1e-5)
        assert logits.grad[i].item() == pytest.approx(weight * (p - y), rel=1e-5)  # weight fixed


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_softmax_cross_entropy(smoothing: float) -> None:
    logits, labels = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    got = losses.softmax_cross_entropy(logits, labels, label_smoothing=smoothing)
    for i, label in enumerate(labels.tolist()):
        log_probs = (logits[i] - torch.logsumexp(logits[i], 0)).tolist()
        q = [smoothing / 4 + (1 - smoothing) * (c == label) for c in range(4)]
        expected = -sum(a * b for a, b in zip(q, log_probs, strict=True))
        assert got[i].item() == pytest.approx(expected, rel=1e-5)


def jrc_by_loops(logits: Tensor, labels: Tensor, sessions: Tensor, alpha: float) -> Tensor:
    """Equations 5 to 7 of 2208.06164 sample by sample, float64."""
    logits = logits.double()
    values = []
    for i in range(len(labels)):
        column = int(labels[i])
        calibration = torch.logsumexp(logits[i], 0) - logits[i, column]
        rivals = [
            logits[j, column]
            for j in range(len(labels))
            if sessions[j] == sessions[i] and labels[j] != labels[i]
        ]
        everyone = torch.stack([logits[i, column], *rivals])
        contrast = torch.logsumexp(everyone, 0) - logits[i, column]
        values.append(alpha * calibration + (1 - alpha) * contrast)
    return torch.stack(values) if values else logits.new_zeros(0)


@pytest.mark.parametrize("count", [0, 1, 2, 33])
def test_jrc_loss_and_its_gradient(count: int) -> None:
    logits = (4 * torch.randn(count, 2)).requires_grad_()
    labels, sessions = torch.randint(0, 2, (count,)), torch.randint(0, 5, (count,))
    got = losses.jrc_loss(logits, labels, sessions, 5, alpha=0.4)
    want = jrc_by_loops(logits, labels, sessions, 0.4)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(got.sum(), logits)
    assert not gradient.isnan().any()
    if count:
        (expected,) = torch.autograd.grad(want.sum(), logits)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_jrc_reads_extreme_logits() -> None:
    logits = torch.tensor([[500.0, -500.0], [-500.0, 500.0], [0.0, 80.0]], requires_grad=True)
    loss = losses.jrc_loss(logits, torch.tensor([1, 0, 1]), torch.zeros(3).long(), 1, alpha=0.5)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("count", [0, 1, 40])
def test_listwise_rank_loss(count: int) -> None:
    logits = (3 * torch.randn(count)).requires_grad_()
    labels, lists = torch.randint(0, 2, (count,)), torch.randint(0, 7, (count,))
    scale = torch.tensor(1.2, requires_grad=True)
    got = losses.listwise_rank_loss(logits, labels, lists, 7, log_scale=scale)
    assert got.shape == (7,)
    for g in range(7):
        mine = (lists == g).nonzero().flatten()
        hits = labels[mine] == 1
        if not hits.any() or hits.all():
            assert got[g].item() == 0.0
            continue
        log_probs = torch.log_softmax(logits[mine].double() * math.exp(1.2), 0)
        want = -log_probs[hits].mean().item()
        assert got[g].item() == pytest.approx(want, rel=1e-5, abs=1e-6)
    gradients = torch.autograd.grad(got.sum(), [logits, scale])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_listwise_temperature_is_bounded() -> None:
    labels, lists = torch.tensor([1, 0]), torch.zeros(2).long()
    logits = torch.tensor([0.0, 1.0])
    got = losses.listwise_rank_loss(logits, labels, lists, 1, log_scale=torch.tensor(50.0))
    assert got.item() == pytest.approx(100.0, rel=1e-4)


def test_l2_loss() -> None:
    got = losses.l2_loss(torch.tensor([1.5, -2.0]), torch.tensor([1, 2]))
    assert got.tolist() == [0.25, 16.0]
