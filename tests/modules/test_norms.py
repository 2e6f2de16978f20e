# SPDX-License-Identifier: Apache-2.0
"""Norms against torch's own, group by group."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tzgen.modules.norms import DomainLayerNorm, HeadNorm, SwishLayerNorm


def test_swish_layer_norm() -> None:
    x = torch.randn(3, 6)
    torch.testing.assert_close(SwishLayerNorm(6)(x), x * torch.sigmoid(F.layer_norm(x, (6,))))


def test_head_norm_is_group_norm_with_a_weight_per_head() -> None:
    """TorchEasyRec: F.group_norm over [L, H, head_dim] with H groups."""
    norm = HeadNorm(3, 4, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(5, 12)
    want = F.group_norm(x.view(5, 3, 4), 3, norm.weight, norm.bias, eps=1e-6).view(5, 12)
    torch.testing.assert_close(norm(x), want)


def test_domain_layer_norm_uses_each_tokens_own_parameters() -> None:
    norm = DomainLayerNorm(3, 4, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, domains = torch.randn(6, 4), torch.tensor([2, 0, 1, 1, 0, 1])
    want = torch.stack(
        [
            F.layer_norm(x[i], (4,), norm.weight[d], norm.bias[d], eps=1e-6)
            for i, d in enumerate(domains.tolist())
        ]
    )
    got = norm(x, domains)
    torch.testing.assert_close(got, want)
    weights = torch.randn(6, 4)
    parameters = (norm.weight, norm.bias)
    pairs = zip(
        torch.autograd.grad(got, parameters, weights),
        torch.autograd.grad(want, parameters, weights),
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


def test_domains_that_do_not_occur_get_zero_gradient() -> None:
    norm = DomainLayerNorm(3, 4)
    norm(torch.randn(2, 4), torch.tensor([1, 1])).square().sum().backward()
    assert not norm.weight.grad[0].any() and not norm.bias.grad[2].any()
    assert norm.bias.grad[1].any()
