# SPDX-License-Identifier: Apache-2.0
"""Items that a row of the batch may not get (what the user had already), without another trie.

B rows, M seen items a row (short lists are padded with -1, any number outside the catalogue being
padding), N items. A node is dead for a row when every item under it that the row may get is seen;
so the last unseen item of a prefix keeps it alive and a beam never spends a place on a prefix that
has nothing left to give: the search is the one over a trie built without those items.

Only the M leaves of a row and the nodes above them can be dead, so they are listed instead of
masking nodes: the items of a node are one range of places (places follow the order of leaves), and
how many of the row's sorted places lie in the range is two binary searches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tzgen.decoding.catalogues import SubCatalogues
from tzgen.decoding.trie import Trie


@dataclass(frozen=True)
class Dead:
    """Nodes of one level that a row may not enter, and the nodes they hang from; int64 [B, M].

    Entries that name no dead node have the parent n_{l-1}, which no beam stands on.
    """

    nodes: Tensor
    parents: Tensor


def dead_nodes(
    trie: Trie, seen: Tensor, catalogues: SubCatalogues | None, choice: Tensor | None
) -> list[Dead]:
    """`Dead` of every level. seen: int64 [B, M]; choice: int64 [B], the sub-catalogue of a row."""
    places = sorted_places(trie, seen, catalogues, choice)
    node = torch.searchsorted(trie.leaf_ptr[:-1], places, right=True) - 1
    found: list[Dead] = []
    for depth in reversed(range(len(trie.levels))):
        level = trie.levels[depth]
        low, high = node, node + 1
        for below in trie.levels[depth + 1 :]:
            low, high = below.indptr[low], below.indptr[high]
        low, high = trie.leaf_ptr[low], trie.leaf_ptr[high]
        taken = torch.searchsorted(places, high) - torch.searchsorted(places, low)
        if catalogues is None or choice is None:
            there = high - low
        else:
            before = catalogues.counts.view(-1)
            shift = (choice * catalogues.counts.size(1)).unsqueeze(1)
            there = before[high + shift] - before[low + shift]
        parent = torch.searchsorted(level.indptr[:-1], node, right=True) - 1
        dead = (taken >= there) & (node < level.num_nodes)
        found.append(Dead(node, torch.where(dead, parent, level.num_parents)))
        node = parent
    return found[::-1]


def sorted_places(
    trie: Trie, seen: Tensor, catalogues: SubCatalogues | None, choice: Tensor | None
) -> Tensor:
    """int64 [B, M] ascending, each place once; N for what is padding, repeated or not allowed."""
    inside = (seen >= 0) & (seen < trie.num_items)
    places = trie.places[torch.where(inside, seen, 0)]
    if catalogues is not None and choice is not None:
        inside &= catalogues.allowed[choice.unsqueeze(1), places]
    places = torch.sort(torch.where(inside, places, trie.num_items), -1).values
    again = places == torch.nn.functional.pad(places, (1, -1), value=-1)
    return torch.sort(torch.where(again, trie.num_items, places), -1).values
