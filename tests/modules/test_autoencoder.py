# SPDX-License-Identifier: Apache-2.0
"""Networks that reach every sign, and LETTER's clusters against a loop."""

from __future__ import annotations

import torch

from tzgen.modules.autoencoder import CodeClusters, Projector


def test_the_last_layer_is_linear() -> None:
    torch.manual_seed(0)
    for hidden in ((), (6, 5)):
        out = Projector(4, hidden, 3, dropout=0.0)(torch.randn(50, 4))
        assert out.shape == (50, 3) and (out < 0).any() and (out > 0).any()


def test_diversity_pulls_to_a_code_of_the_same_cluster() -> None:
    torch.manual_seed(0)
    books = [torch.randn(8, 3), torch.randn(6, 3)]
    clusters = CodeClusters((8, 6), num_clusters=2, interval=3).train()
    codes = torch.stack([torch.arange(6), torch.arange(6)], 1)
    value = clusters(codes, books)
    sizes = torch.bincount(clusters.get_buffer("cluster_0"))
    assert sizes.tolist() == [4, 4]
    low, high = torch.zeros(6), torch.zeros(6)
    for n in range(6):
        for level, book in enumerate(books):
            c = int(codes[n, level])
            scores = book @ book[c]
            total = torch.cat([scores[:c], scores[c + 1 :]]).logsumexp(0)
            cluster = clusters.get_buffer(f"cluster_{level}")
            same = [j for j in range(len(book)) if j != c and cluster[j] == cluster[c]]
            options = torch.stack([total - scores[j] for j in same]) / 2
            low[n] += options.min()
            high[n] += options.max()
    assert ((value >= low - 1e-5) & (value <= high + 1e-5)).all()


def test_clusters_are_made_anew_when_it_is_time() -> None:
    torch.manual_seed(0)
    clusters = CodeClusters((8,), num_clusters=2, interval=2).train()
    codes = torch.zeros(1, 1, dtype=torch.int64)
    made = []
    for _ in range(3):
        for _ in range(2):  # micro-batches
            clusters(codes, [torch.randn(8, 3)])
            made.append(clusters.get_buffer("cluster_0").clone())
        clusters.end_step()
    assert all(torch.equal(made[0], same) for same in made[1:4])
    assert not torch.equal(made[3], made[4]) and torch.equal(made[4], made[5])


def test_a_code_alone_in_its_cluster_takes_any_other() -> None:
    clusters = CodeClusters((3,), num_clusters=3, interval=1).train()
    value = clusters(torch.tensor([[0], [1]]), [torch.randn(3, 2)])
    assert torch.isfinite(value).all()
