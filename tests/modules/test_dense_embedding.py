# SPDX-License-Identifier: Apache-2.0
"""Vectors from numbers: AutoDis against a loop over channels, the linear layer by formula."""

from __future__ import annotations

import pytest
import torch

from tzgen.modules.dense_embedding import AutoDis, LinearEmbedding


def test_autodis_matches_the_paper_one_number_at_a_time() -> None:
    module = AutoDis(embedding_dim=3, num_channels=4, temperature=0.5, keep_prob=0.8)
    numbers = torch.tensor([[0.3], [-1.5], [0.0]])
    got = module(numbers)
    for row, number in enumerate(numbers[:, 0]):
        hidden = torch.nn.functional.leaky_relu(module.proj_w * number)
        mixed = torch.stack([(module.proj_m[i] * hidden).sum() + 0.8 * hidden[i] for i in range(4)])
        share = torch.exp(mixed / 0.5) / torch.exp(mixed / 0.5).sum()
        want = sum(share[i] * module.meta_emb[i] for i in range(4))
        torch.testing.assert_close(got[row], want)


def test_autodis_wants_one_number() -> None:
    with pytest.raises(ValueError, match=r"\[rows, 1\]"):
        AutoDis(embedding_dim=3, num_channels=4)(torch.zeros(2, 2))


def test_linear_embedding_has_no_bias() -> None:
    module = LinearEmbedding(value_dim=2, embedding_dim=3)
    assert module(torch.zeros(4, 2)).abs().sum() == 0
    torch.testing.assert_close(module(torch.eye(2)), module.weight.T)


@pytest.mark.parametrize(
    "module",
    [AutoDis(embedding_dim=3, num_channels=4), LinearEmbedding(value_dim=1, embedding_dim=3)],
)
def test_no_rows(module: torch.nn.Module) -> None:
    assert module(torch.zeros(0, 1)).shape == (0, 3)
