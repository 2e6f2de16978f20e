# SPDX-License-Identifier: Apache-2.0
"""Losses of tokenizers, by hand and by loops over rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tzgen.errors import UserError
from tzgen.objectives import sid_losses


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_distances_by_hand() -> None:
    a, b = torch.tensor([[1.0, 3.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [3.0, 0.0]])
    assert sid_losses.distance(a, b, "l2").tolist() == [2.0, 6.5]
    assert sid_losses.distance(a, b, "l1").tolist() == [1.0, 2.5]
    assert sid_losses.distance(a, b, "cos")[1] == 1.0
    with pytest.raises(UserError, match="distance 'huber'"):
        sid_losses.distance(a, b, "huber")


def test_commitment_moves_each_side_by_its_weight() -> None:
    z, q = normal(5, 3).requires_grad_(), normal(5, 2, 3, seed=1).requires_grad_()
    value = sid_losses.commitment_loss(z, q, to_code=1.0, to_encoder=0.25, kind="l2")
    by_hand = [
        1.25 * sum(float((z[n] - q[n, s]).detach().square().mean()) for s in range(2)) / 2
        for n in range(5)
    ]
    torch.testing.assert_close(value, torch.tensor(by_hand))
    value.sum().backward()
    assert z.grad is not None and q.grad is not None
    difference = (z.detach()[:, None] - q.detach()) * 2 / 3 / 2
    torch.testing.assert_close(z.grad, difference.sum(1))
    torch.testing.assert_close(q.grad, -0.25 * difference)


def test_contrasts_find_the_own_row() -> None:
    x, decoded = normal(6, 4), normal(6, 4, seed=1)
    everybody = torch.cat([normal(3, 4, seed=2), x])
    value = sid_losses.contrastive_recon_loss(decoded, x, everybody, 3, temperature=0.5)
    for n in range(6):
        cosines = torch.stack([F.cosine_similarity(decoded[n], e, dim=0) for e in everybody]) / 0.5
        torch.testing.assert_close(value[n], cosines.logsumexp(0) - cosines[n + 3])
    value = sid_losses.collaborative_loss(decoded, everybody, 3, temperature=2.0)
    scores = decoded @ everybody.t() / 2.0
    torch.testing.assert_close(value, scores.logsumexp(1) - scores[:, 3:].diagonal())
    with pytest.raises(UserError, match="5 numbers and the code space 4"):
        sid_losses.collaborative_loss(decoded, normal(6, 5), 0, temperature=1.0)


def test_pairs_are_contrasted_among_pairs_only() -> None:
    a, b, x, y = (normal(5, 3, seed=s) for s in range(4))
    is_pair = torch.tensor([True, False, True, True, False])
    units = (F.normalize(a, dim=1), F.normalize(b, dim=1))
    scales = tuple(torch.tensor(s) for s in (2.0, 3.0, 4.0))
    value = sid_losses.pair_contrast(
        (a, b), (*units, x, y), is_pair, is_pair, 0, (scales[0], scales[1], scales[2])
    )
    pairs = [0, 2, 3]
    for n in pairs:
        total = 0.0
        for scale, (for_a, for_b) in zip(
            (2.0, 3.0, 4.0), ((units[1], units[0]), (y, x), (x, y)), strict=True
        ):
            for anchor, target in ((units[0][n], for_a), (units[1][n], for_b)):
                scores = torch.stack([scale * anchor @ target[m] for m in pairs])
                total += float(scores.logsumexp(0) - scale * anchor @ target[n])
        assert float(value[n]) == pytest.approx(total / 6, rel=1e-5)


def test_a_batch_without_pairs_is_finite() -> None:
    x = normal(3, 2).requires_grad_()
    none = torch.zeros(3, dtype=torch.bool)
    one = torch.tensor(1.0)
    value = sid_losses.pair_contrast((x, x), (x, x, x, x), none, none, 0, (one, one, one))
    (value * none).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.zeros_like(x))
