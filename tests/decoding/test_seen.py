# SPDX-License-Identifier: Apache-2.0
"""Dead nodes against counting in sets."""

from __future__ import annotations

import pytest
import torch

from tzgen.decoding.catalogues import SubCatalogues
from tzgen.decoding.seen import dead_nodes
from tzgen.decoding.trie import Trie

SIZES = (3, 4, 3)


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("length", [1, 8, 60])
def test_a_node_is_dead_when_all_that_a_row_may_get_is_seen(length: int, restricted: bool) -> None:
    codes = torch.stack([torch.randint(0, size, (40,)) for size in SIZES], 1)
    trie = Trie.from_codes(codes, SIZES, shared_leaves=True)
    seen = torch.randint(-2, 45, (6, length))  # repeats, padding and numbers beyond the catalogue
    masks = {"all": torch.ones(40, dtype=torch.bool), "some": torch.rand(40) < 0.4}
    catalogues = SubCatalogues.of(trie, masks) if restricted else None
    choice = torch.arange(6) % 2 if restricted else None
    dead = dead_nodes(trie, seen, catalogues, choice)
    items = [tuple(item) for item in codes.tolist()]
    for row in range(6):
        allowed = masks["some"] if restricted and row % 2 else masks["all"]
        mine = {item for item in range(40) if allowed[item]}
        left = mine - set(seen[row].tolist())
        for depth, level in enumerate(trie.levels):
            prefixes = sorted({item[: depth + 1] for item in items})
            under = {items[item][: depth + 1] for item in mine}
            alive = {items[item][: depth + 1] for item in left}
            hit = dead[depth].parents[row] < level.num_parents
            nodes = dead[depth].nodes[row][hit].tolist()
            assert {prefixes[node] for node in nodes} == under - alive
            for node, parent in zip(nodes, dead[depth].parents[row][hit].tolist(), strict=True):
                assert int(level.parents()[node]) == parent
