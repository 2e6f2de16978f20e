# SPDX-License-Identifier: Apache-2.0
"""Pareto weights against a search over the simplex, and which parameters count as shared."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from tzgen.objectives.pareto import pareto_loss, pareto_weights, shared_gram


def test_smallest_norm_where_the_bounds_do_not_bind() -> None:
    """The closed form is the true optimum then: no point of a fine grid has a smaller norm."""
    g = np.random.default_rng(1)
    for _ in range(20):
        gradients = g.normal(size=(3, 50))
        gram = gradients @ gradients.T
        weights = pareto_weights(gram, np.zeros(3))
        assert weights.sum() == pytest.approx(1.0)
        assert (weights > 0).all()
        best = min(
            np.array([a, b, 60 - a - b]) @ gram @ np.array([a, b, 60 - a - b]) / 3600
            for a, b in itertools.product(range(61), repeat=2)
            if a + b <= 60
        )
        assert weights @ gram @ weights <= best + 1e-9


def test_bounds_hold_and_the_projection_is_the_nearest_point() -> None:
    """Against the constrained least squares of the paper's second step, by a general solver."""
    g = np.random.default_rng(2)
    for _ in range(20):
        gradients = g.normal(size=(4, 6)) * g.uniform(0.01, 10, (4, 1)) + g.normal(size=6)
        gram, low = gradients @ gradients.T, np.array([0.3, 0.0, 0.2, 0.1])
        system = np.block([[gram, np.ones((4, 1))], [np.ones((1, 4)), np.zeros((1, 1))]])
        relaxed = np.linalg.solve(system, np.append(-gram @ low, 1 - low.sum()))[:4]
        found = minimize(
            lambda x, target=relaxed: ((x - target) ** 2).sum(),
            np.full(4, 0.1),
            method="SLSQP",
            bounds=[(0, None)] * 4,
            constraints={"type": "eq", "fun": lambda x: x.sum() - 0.4},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        weights = pareto_weights(gram, low)
        assert (weights >= low - 1e-12).all()
        assert weights.sum() == pytest.approx(1.0)
        np.testing.assert_allclose(weights, found.x + low, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_degenerate_gradients(scale: float) -> None:
    same = np.ones((3, 3)) * scale  # parallel: any weights do; the even ones are taken
    np.testing.assert_allclose(pareto_weights(same, np.zeros(3)), np.full(3, 1 / 3), atol=1e-6)
    np.testing.assert_allclose(pareto_weights(0 * same, np.zeros(3)), np.full(3, 1 / 3), atol=1e-6)


def test_only_shared_parameters_count() -> None:
    trunk, towers = nn.Linear(3, 2), [nn.Linear(2, 1), nn.Linear(2, 1)]
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    x = torch.randn(5, 3)
    losses = [(tower(trunk(x) * frozen) ** 2).mean() for tower in towers]
    parameters = [*trunk.parameters(), *towers[0].parameters(), *towers[1].parameters(), frozen]
    gram = shared_gram(losses, parameters)
    for i, j in itertools.product(range(2), repeat=2):
        rows = []
        for k in (i, j):
            grads = torch.autograd.grad(losses[k], list(trunk.parameters()), retain_graph=True)
            rows.append(torch.cat([grad.flatten() for grad in grads]).double())
        assert gram[i, j].item() == pytest.approx((rows[0] @ rows[1]).item(), rel=1e-6)


def test_pareto_loss_weighs_and_keeps_the_graph() -> None:
    w = nn.Parameter(torch.tensor([1.0, 0.0]))
    losses = [w[0], -3 * w[0] + w[1]]  # gradients (1, 0) and (-3, 1)
    total = pareto_loss(losses, [0.0, 0.0], [w])
    total.backward()
    # min over a of |a (1, 0) + (1 - a)(-3, 1)|^2: a = 13/17
    assert w.grad is not None
    torch.testing.assert_close(w.grad, torch.tensor([1 / 17, 4 / 17]), rtol=1e-4, atol=1e-5)


def test_ranks_use_the_same_weights() -> None:
    w = nn.Parameter(torch.tensor([2.0, 1.0]))
    total = pareto_loss(
        [w[0], w[1]], [0.0, 0.0], [w], lambda gram: gram + torch.tensor([[0, 0], [0, 3]])
    )
    assert total.item() == pytest.approx(0.8 * 2 + 0.2)  # gram diag(1, 4): weights 4/5, 1/5
