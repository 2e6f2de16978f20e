# SPDX-License-Identifier: Apache-2.0
"""From search results to lists: the items at the leaves, and re-ranking for variety (MMR).

B rows, K results a row, P the most items that share a leaf, D vector width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from tzgen.decoding.catalogues import SubCatalogues
from tzgen.decoding.options import BeamResult
from tzgen.decoding.trie import Trie


@dataclass(frozen=True)
class ItemList:
    """Items best first; places beyond the valid ones are filled as said."""

    items: Tensor  # int64 [B, limit], rows of the codes that the trie was built from; -1
    scores: Tensor  # float32 [B, limit], -inf
    results: Tensor  # int64 [B, limit], the place in the BeamResult that it comes from; -1
    valid: Tensor  # bool [B, limit]


@torch.no_grad()
def list_items(
    trie: Trie,
    result: BeamResult,
    limit: int,
    *,
    seen: Tensor | None = None,
    catalogues: SubCatalogues | None = None,
    choice: Tensor | None = None,
) -> ItemList:
    """The first `limit` items of the results; seen, catalogues, choice as in the search.

    Items that share a leaf have its score and come by row number. Where leaves are shared, a leaf
    may hold seen or excluded items beside others: give the filters here again.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}; a list holds at least one item")
    leaves = torch.where(result.valid, result.leaves, trie.num_leaves)
    within = torch.arange(trie.leaf_items, device=trie.device)
    places = trie.leaf_ptr[leaves].unsqueeze(2) + within
    there = places < trie.leaf_ptr[leaves + 1].unsqueeze(2)
    places = torch.where(there, places, 0).flatten(1)
    there = there.flatten(1)
    items = trie.items[places]
    if catalogues is not None:
        if choice is None:
            choice = torch.zeros(result.leaves.size(0), dtype=torch.int64, device=trie.device)
        there = there & catalogues.allowed[choice.unsqueeze(1), places]
    if seen is not None and seen.size(1) > 0:
        ordered = torch.sort(seen, -1).values
        found = torch.searchsorted(ordered, items).clamp_max(seen.size(1) - 1)
        there = there & (ordered.gather(1, found) != items)
    front = torch.sort((~there).to(torch.uint8), dim=-1, stable=True).indices[:, :limit]
    valid = there.gather(1, front)
    results = front // trie.leaf_items
    scores = result.scores.gather(1, results)
    space = (0, limit - front.size(1))
    return ItemList(
        pad(items.gather(1, front).masked_fill(~valid, -1), space, value=-1),
        pad(scores.masked_fill(~valid, -torch.inf), space, value=-torch.inf),
        pad(results.masked_fill(~valid, -1), space, value=-1),
        pad(valid, space),
    )


def cosine(vectors: Tensor) -> Tensor:
    """Similarity of results by item vectors: [B, K, D] -> [B, K, K] in [-1, 1]."""
    unit = normalize(vectors.to(torch.float32), dim=-1)
    return unit @ unit.transpose(1, 2)


def prefix_overlap(codes: Tensor) -> Tensor:
    """Similarity by codes: int64 [B, K, L] -> float32 [B, K, K], the share of levels in common."""
    same = codes.unsqueeze(2) == codes.unsqueeze(1)
    return same.cumprod(-1).to(torch.float32).mean(-1)


@torch.no_grad()
def rerank_mmr(
    scores: Tensor, similarity: Tensor, valid: Tensor, *, limit: int, relevance_weight: float
) -> Tensor:
    """Maximal marginal relevance (Carbonell and Goldstein 1998): places of the results, [B, limit].

    Greedy: the next result maximises  w * relevance - (1 - w) * (largest similarity to what is
    chosen already, 0 for the first). Relevance is the score moved to [0, 1] over the row's valid
    results, so that w means the same for every model. Equal values: the earlier result. -1 where
    fewer than `limit` results are valid.

    scores: [B, K], similarity: [B, K, K] (`cosine`, `prefix_overlap`), valid: bool [B, K].
    """
    if not 0 <= relevance_weight <= 1:
        raise ValueError(f"relevance_weight is {relevance_weight}; it must lie in [0, 1]")
    lowest = scores.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    highest = scores.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
    span = (highest - lowest).clamp_min(torch.finfo(scores.dtype).tiny)
    relevance = ((scores - lowest) / span * relevance_weight).masked_fill(~valid, -torch.inf)
    nearest = torch.full_like(relevance, -torch.inf)
    picks = []
    for step in range(min(limit, scores.size(1))):
        gain = relevance - (1 - relevance_weight) * nearest if step else relevance
        value, pick = gain.max(1, keepdim=True)
        picks.append(torch.where(value > -torch.inf, pick, -1))
        relevance = relevance.scatter(1, pick, -torch.inf)
        column = similarity.gather(2, pick.unsqueeze(1).expand(-1, scores.size(1), 1)).squeeze(2)
        nearest = torch.maximum(nearest, column.to(nearest.dtype))
    return pad(torch.cat(picks, 1), (0, limit - len(picks)), value=-1)
