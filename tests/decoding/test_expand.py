# SPDX-License-Identifier: Apache-2.0
"""Candidates of both forms against the children in sets."""

from __future__ import annotations

import pytest
import torch

from tzgen.decoding.expand import Candidates, FreeSpace, TrieSpace, windows
from tzgen.decoding.seen import Dead
from tzgen.decoding.trie import Trie

CODES = [(0, 1), (0, 2), (0, 4), (2, 0), (2, 4), (3, 3)]
SIZES = (4, 5)


def in_full(candidates: Candidates, values: torch.Tensor) -> torch.Tensor:
    """Values at slots -> [B, K, V], -inf elsewhere."""
    if candidates.tokens is None:
        return values
    full = torch.full((*values.shape[:2], SIZES[1]), -torch.inf)
    return full.scatter_reduce(2, candidates.tokens, values, "amax")


@pytest.mark.parametrize("dense_bytes", [0, 1 << 20], ids=["csr", "dense"])
def test_legal_logits_stay_and_slots_lead_to_children(dense_bytes: int) -> None:
    trie = Trie.from_codes(torch.tensor(CODES), SIZES, dense_bytes=dense_bytes)
    space = TrieSpace(trie, None, None, None)
    nodes = torch.tensor([[0, 1, 2], [1, 3, 3]])  # prefixes 0, 2, 3; 3 is "no node"
    logits = torch.randn(2, 3, 5)
    candidates = space.expand(1, nodes, logits)
    full = in_full(candidates, candidates.logits)
    legal = {0: [1, 2, 4], 1: [0, 4], 2: [3], 3: []}
    for row in range(2):
        for beam in range(3):
            codes = legal[int(nodes[row, beam])]
            assert (full[row, beam] > -torch.inf).nonzero().squeeze(1).tolist() == codes
            assert torch.equal(full[row, beam, codes], logits[row, beam, codes])
    flat = candidates.logits.flatten(1)
    for row in range(2):
        slots = (flat[row] > -torch.inf).nonzero().T.expand(2, -1)
        tokens = candidates.token_at(slots)
        found, beams = space.step(1, candidates, slots, tokens)
        walked = [
            (int(trie.levels[0].tokens[nodes[row, beam]]), token)
            for beam, token in zip(beams[row].tolist(), tokens[row].tolist(), strict=True)
        ]
        assert [CODES[leaf] for leaf in found[row].tolist()] == walked
    costs = torch.arange(10.0).view(2, 5)
    spread = in_full(candidates, candidates.per_code(costs).expand(candidates.logits.shape))
    assert torch.equal(spread[0, 0, [1, 2, 4]], costs[0, [1, 2, 4]])


@pytest.mark.parametrize("dense_bytes", [0, 1 << 20], ids=["csr", "dense"])
def test_dead_nodes_are_removed_from_the_beam_they_hang_from(dense_bytes: int) -> None:
    trie = Trie.from_codes(torch.tensor(CODES), SIZES, dense_bytes=dense_bytes)
    space = TrieSpace(trie, None, None, None)
    nodes = torch.tensor([[0, 2], [1, 2]])
    candidates = space.expand(1, nodes, torch.zeros(2, 2, 5))
    leaves = torch.tensor([[1, 1, 5], [2, 4, 6]])  # 6 is "no node"; leaf 2 hangs from prefix 0
    dead = Dead(leaves, space.parents(1, leaves))
    assert dead.parents.tolist() == [[0, 0, 2], [0, 1, 3]]
    left = in_full(candidates, space.forbid(1, candidates, candidates.logits, dead)) == 0
    assert left.nonzero().tolist() == [[0, 0, 1], [0, 0, 4], [1, 0, 0], [1, 1, 3]]


def test_without_a_trie_everything_is_legal() -> None:
    space = FreeSpace(SIZES)
    logits = torch.randn(1, 2, 5)
    assert space.expand(1, torch.zeros(1, 2).long(), logits).logits is logits
    assert [space.limit(depth, 9) for depth in range(2)] == [4, 9]
    assert FreeSpace((1 << 40, 1 << 40)).limit(1, 50) == 50


def test_windows() -> None:
    array = torch.arange(10)
    assert windows(array, 3, torch.tensor([[0, 7]])).tolist() == [[[0, 1, 2], [7, 8, 9]]]
