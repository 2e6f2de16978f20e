# SPDX-License-Identifier: Apache-2.0
"""Vectors for numeric features: AutoDis (Guo et al. 2021, arXiv 2012.08986) and a linear layer.

N rows (or sequence steps), C channels (meta-embeddings), D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AutoDis(nn.Module):
    """A number becomes a softmax mixture of C learned vectors.

    h = LeakyReLU(w x); x_hat = softmax((M h + keep_prob h) / temperature); e = x_hat E
    with w [C], M [C, C], E [C, D].
    """

    def __init__(
        self,
        *,
        embedding_dim: int,
        num_channels: int,
        temperature: float = 0.1,
        keep_prob: float = 0.8,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.temperature, self.keep_prob = temperature, keep_prob
        self.meta_emb = nn.Parameter(torch.empty(num_channels, embedding_dim, device=device))
        self.proj_w = nn.Parameter(torch.empty(num_channels, device=device))
        self.proj_m = nn.Parameter(torch.empty(num_channels, num_channels, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, numbers: Tensor) -> Tensor:
        """float [N, 1] -> [N, D]."""
        if numbers.dim() != 2 or numbers.size(1) != 1:
            raise ValueError(
                f"AutoDis wants one number a row, [rows, 1]; got {tuple(numbers.shape)}"
            )
        hidden = F.leaky_relu(numbers * self.proj_w)
        mixed = F.linear(hidden, self.proj_m) + self.keep_prob * hidden
        return torch.softmax(mixed / self.temperature, dim=-1) @ self.meta_emb


class LinearEmbedding(nn.Module):
    """Numbers through one linear layer without bias, so that 0 is the zero vector."""

    def __init__(
        self, *, value_dim: int, embedding_dim: int, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(embedding_dim, value_dim, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.weight.size(1) ** -0.5)

    def forward(self, numbers: Tensor) -> Tensor:
        """float [N, value_dim] -> [N, D]."""
        return F.linear(numbers, self.weight)
