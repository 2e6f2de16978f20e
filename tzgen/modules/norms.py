# SPDX-License-Identifier: Apache-2.0
"""Norms that torch.nn does not have. L tokens, D features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SwishLayerNorm(nn.Module):
    """x * sigmoid(LayerNorm(x)), generative-recommenders' hidden activation; [..., D]."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.norm(x))


class HeadNorm(nn.Module):
    """Normalises every head alone, with one weight and bias a head (TER's `use_group_norm`).

    [L, H * head_dim] -> the same shape.
    """

    def __init__(self, num_heads: int, head_dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.shape, self.eps = (num_heads, head_dim), eps
        self.weight = nn.Parameter(torch.ones(num_heads))
        self.bias = nn.Parameter(torch.zeros(num_heads))

    def forward(self, x: Tensor) -> Tensor:
        heads = F.layer_norm(x.unflatten(-1, self.shape), self.shape[1:], eps=self.eps)
        return (heads * self.weight[:, None] + self.bias[:, None]).flatten(-2)


class DomainLayerNorm(nn.Module):
    """Layer norm whose weight and bias depend on the token's domain (MTGR's group layer norm)."""

    def __init__(self, num_domains: int, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(num_domains, dim))
        self.bias = nn.Parameter(torch.zeros(num_domains, dim))

    def forward(self, x: Tensor, domains: Tensor) -> Tensor:
        """x [L, D], domains int64 [L] -> [L, D]."""
        normed = F.layer_norm(x, (self.dim,), eps=self.eps)
        # one_hot @ table: a gather's backward would add L rows into a table of three
        chosen = F.one_hot(domains, self.weight.size(0)).to(normed.dtype)
        weight, bias = self.weight.to(normed.dtype), self.bias.to(normed.dtype)
        return normed * (chosen @ weight) + chosen @ bias
