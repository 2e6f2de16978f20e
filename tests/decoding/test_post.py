# SPDX-License-Identifier: Apache-2.0
"""Lists of items and MMR, by hand and against plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tzgen.decoding.catalogues import SubCatalogues
from tzgen.decoding.options import BeamResult
from tzgen.decoding.post import cosine, list_items, prefix_overlap, rerank_mmr
from tzgen.decoding.trie import Trie


def result_of(trie: Trie, leaves: Tensor) -> BeamResult:
    valid = leaves >= 0
    scores = torch.linspace(-1, -2, leaves.size(1)).expand(leaves.shape)
    scores = scores.masked_fill(~valid, -torch.inf)
    return BeamResult(trie.codes_of(leaves), scores, scores, leaves, valid)


def test_items_of_shared_leaves_keep_order_and_score() -> None:
    codes = torch.tensor([[1], [0], [1], [2], [1]])
    trie = Trie.from_codes(codes, (3,), shared_leaves=True)
    assert trie.leaf_items == 3
    result = result_of(trie, torch.tensor([[1, 2, 0], [0, 1, -1]]))
    found = list_items(trie, result, 4)
    assert found.items.tolist() == [[0, 2, 4, 3], [1, 0, 2, 4]]
    assert found.results.tolist() == [[0, 0, 0, 1], [0, 1, 1, 1]]
    assert found.scores[0].tolist() == [-1, -1, -1, -1.5]
    longer = list_items(trie, result, 12, seen=torch.tensor([[2, 1, -1], [0, 0, 4]]))
    assert longer.items.tolist() == [[0, 4, 3, *[-1] * 9], [1, 2, *[-1] * 10]]
    assert longer.valid.sum(1).tolist() == [3, 2] and longer.scores[0, 3] == -torch.inf
    masks = {"a": torch.tensor([True, False, True, True, True]), "b": torch.arange(5) == 1}
    catalogues = SubCatalogues.of(trie, masks)
    choice = catalogues.index(["a", "b"])
    allowed = list_items(trie, result, 4, catalogues=catalogues, choice=choice)
    assert allowed.items.tolist() == [[0, 2, 4, 3], [1, -1, -1, -1]]
    first = list_items(trie, result, 5, catalogues=catalogues)
    assert first.items.tolist() == [[0, 2, 4, 3, -1], [0, 2, 4, -1, -1]]
    with pytest.raises(ValueError, match="limit is 0"):
        list_items(trie, result, 0)


def test_similarities_by_hand() -> None:
    codes = torch.tensor([[[1, 2, 3], [1, 2, 4], [1, 5, 3], [0, 2, 3]]])
    third = 1 / 3
    want = [[1, 2 * third, third, 0], [2 * third, 1, third, 0], [third, third, 1, 0], [0, 0, 0, 1]]
    torch.testing.assert_close(prefix_overlap(codes)[0], torch.tensor(want))
    vectors = torch.tensor([[[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [0.0, 0.0]]])
    want = [[1, 0, -1, 0], [0, 1, 0, 0], [-1, 0, 1, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(cosine(vectors)[0], torch.tensor(want, dtype=torch.float32))


def plain_mmr(scores: list[float], alike: list[list[float]], limit: int, w: float) -> list[int]:
    there = [place for place, score in enumerate(scores) if score > -math.inf]
    low, high = min(scores[p] for p in there), max(scores[p] for p in there)
    relevance = {p: (scores[p] - low) / (high - low) if high > low else 0.0 for p in there}
    chosen: list[int] = []
    while there and len(chosen) < limit:
        gains = {
            p: w * relevance[p] - (1 - w) * max((alike[p][q] for q in chosen), default=0.0)
            for p in there
        }
        best = max(there, key=lambda p: (gains[p], -p))
        chosen.append(best)
        there.remove(best)
    return chosen + [-1] * (limit - len(chosen))


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.7, 1.0])
def test_mmr_equals_plain_python(weight: float) -> None:
    scores = torch.randn(6, 9).sort(1, descending=True).values
    valid = torch.ones(6, 9, dtype=torch.bool)
    valid[1, 4:], valid[2, 1:] = False, False
    scores[~valid] = -torch.inf
    alike = cosine(torch.randn(6, 9, 3))
    got = rerank_mmr(scores, alike, valid, limit=7, relevance_weight=weight)
    for row in range(6):
        assert got[row].tolist() == plain_mmr(
            scores[row].tolist(), alike[row].tolist(), 7, weight
        ), row


def test_mmr_edges() -> None:
    scores, alike = torch.full((1, 3), -torch.inf), torch.eye(3)[None]
    nothing = rerank_mmr(scores, alike, scores > 0, limit=2, relevance_weight=0.5)
    assert nothing.tolist() == [[-1, -1]]
    same = torch.zeros(1, 3)
    got = rerank_mmr(same, alike, same == 0, limit=5, relevance_weight=0.5)
    assert got.tolist() == [[0, 1, 2, -1, -1]]
    with pytest.raises(ValueError, match="relevance_weight is 2"):
        rerank_mmr(same, alike, same == 0, limit=2, relevance_weight=2)
