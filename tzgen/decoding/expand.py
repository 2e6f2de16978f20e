# SPDX-License-Identifier: Apache-2.0
"""The legal codes that may follow each live beam at one level, with the model's logits for them.

B rows, K live beams, V codes at the level, W candidate slots a beam. Two forms, chosen per level
when the trie is built. Dense: W = V, slot = code, and a table row of {0, -inf} is added to the
logits. CSR: W = C, the largest number of children there; slot = child, so logits are gathered at
the children alone and nothing after the gather depends on V. The children of a beam are one run of
`tokens`; windows of W entries overlap, so they are read as whole rows, with one index a beam.

Either way slots ascend with the numbers of the nodes as long as the beams do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tzgen.decoding.catalogues import SubCatalogues
from tzgen.decoding.seen import Dead
from tzgen.decoding.trie import Trie


@dataclass(frozen=True)
class Candidates:
    """Slots of the live beams of one level."""

    logits: Tensor  # float32 [B, K, W], -inf where nothing legal is
    nodes: Tensor  # int64 [B, K], where the beams stand
    starts: Tensor | None  # int64 [B, K], the first child; None when slots are codes
    tokens: Tensor | None  # int64 [B, K, W]; None when slots are codes

    @property
    def width(self) -> int:
        return self.logits.size(2)

    def of(self, beams: slice) -> Candidates:
        """Those of some beams."""
        starts, tokens = self.starts, self.tokens
        return Candidates(
            self.logits[:, beams],
            self.nodes[:, beams],
            None if starts is None else starts[:, beams],
            None if tokens is None else tokens[:, beams],
        )

    def token_at(self, slots: Tensor) -> Tensor:
        """int64 [B, k] flat slots (beam * W + slot) -> codes [B, k]."""
        if self.tokens is None:
            return slots % self.width
        return self.tokens.flatten(1).gather(1, slots)

    def per_code(self, x: Tensor) -> Tensor:
        """float32 [B, V], a number a code -> at the slots, [B, K, W] or [B, 1, W]."""
        if self.tokens is None:
            return x.unsqueeze(1)
        return x.gather(1, self.tokens.flatten(1)).view(self.tokens.shape)


class TrieSpace:
    """A trie with what this batch may see of it."""

    fresh = True  # candidates' logits are not the model's own, and may be written to

    def __init__(
        self,
        trie: Trie,
        catalogues: SubCatalogues | None,
        choice: Tensor | None,
        dead: Sequence[Dead] | None,
    ) -> None:
        self.trie, self.dead = trie, dead
        self.catalogues, self.choice = catalogues, choice
        self.sizes = trie.sizes

    def limit(self, depth: int, width: int) -> int:
        """Beams worth keeping after this level: there are no more prefixes than nodes."""
        return min(width, self.trie.levels[depth].num_nodes)

    def nowhere(self, depth: int) -> int:
        """Where a dead beam stands after this level."""
        return self.trie.levels[depth].num_nodes

    def expand(self, depth: int, nodes: Tensor, logits: Tensor) -> Candidates:
        """Nodes int64 [B, K] of the level above (0 at level 0), logits float32 [B, K, V]."""
        level, bias, alive = self.trie.levels[depth], self.trie.levels[depth].bias, None
        if self.catalogues is not None and self.choice is not None:
            bias, alive = self.catalogues.bias[depth], self.catalogues.alive[depth]
        if bias is not None:
            rows = nodes
            if alive is not None and self.choice is not None:
                rows = nodes + (self.choice * (level.num_parents + 1)).unsqueeze(1)
            values = bias.index_select(0, rows.flatten()).view(logits.shape)
            return Candidates(values.add_(logits), nodes, None, None)
        starts = pick(level.indptr, nodes)
        counts = pick(level.indptr, nodes + 1) - starts
        tokens = windows(level.tokens, level.branching, starts).to(torch.int64)
        values = logits.gather(2, tokens).add_(
            windows(level.tail, level.branching, level.branching - counts)
        )
        if alive is not None and self.choice is not None:
            first = starts + (self.choice * alive.size(1)).unsqueeze(1)
            values.add_(windows(alive.view(-1), level.branching, first))
        return Candidates(values, nodes, starts, tokens)

    def seen(self, depth: int, candidates: Candidates) -> Tensor:
        """The candidates' logits, -inf at what the row has seen."""
        if self.dead is None:
            return candidates.logits
        return self.forbid(depth, candidates, candidates.logits, self.dead[depth])

    def forbid(self, depth: int, candidates: Candidates, values: Tensor, dead: Dead) -> Tensor:
        """values [B, K, W] at the candidates' slots, -inf at dead nodes."""
        nodes = candidates.nodes.contiguous()
        beam = torch.searchsorted(nodes, dead.parents).clamp_max(nodes.size(1) - 1)
        hit = nodes.gather(1, beam) == dead.parents
        hit &= dead.parents < self.trie.levels[depth].num_parents
        if candidates.starts is None:
            place = self.trie.levels[depth].tokens[torch.where(hit, dead.nodes, 0)]
        else:
            place = dead.nodes - candidates.starts.gather(1, beam)
        slots = torch.where(hit, beam * candidates.width + place, 0)
        # What is not hit adds 0 to slot 0: the order of the additions cannot matter.
        gone = torch.where(hit, -torch.inf, torch.zeros((), dtype=values.dtype, device=hit.device))
        return values.flatten(1).scatter_add(1, slots, gone).view(values.shape)

    def parents(self, depth: int, nodes: Tensor) -> Tensor:
        """The node of the level above each hangs from; "no node" for "no node"."""
        ends = self.trie.levels[depth].indptr[:-1]
        return torch.searchsorted(ends, nodes, right=True) - 1

    def step(
        self, depth: int, candidates: Candidates, slots: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Flat slots [B, k] and their codes -> (nodes, the beams they continue), int64 [B, k]."""
        beam = torch.div(slots, candidates.width, rounding_mode="trunc")
        if candidates.starts is None:
            parents = candidates.nodes.gather(1, beam)
            return self.trie.levels[depth].legal_child(parents, tokens), beam
        return candidates.starts.gather(1, beam) + slots % candidates.width, beam


class FreeSpace:
    """Every code may follow every prefix: decoding without a trie, to measure what it would do."""

    fresh = False

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)

    def limit(self, depth: int, width: int) -> int:
        return min(width, math.prod(self.sizes[: depth + 1]))

    def nowhere(self, depth: int) -> int:
        return 1

    def expand(self, depth: int, nodes: Tensor, logits: Tensor) -> Candidates:
        return Candidates(logits, nodes, None, None)

    def seen(self, depth: int, candidates: Candidates) -> Tensor:
        return candidates.logits

    def forbid(self, depth: int, candidates: Candidates, values: Tensor, dead: Dead) -> Tensor:
        return values

    def parents(self, depth: int, nodes: Tensor) -> Tensor:
        return torch.zeros_like(nodes)

    def step(
        self, depth: int, candidates: Candidates, slots: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        beam = torch.div(slots, candidates.width, rounding_mode="trunc")
        return torch.zeros_like(beam), beam


def pick(array: Tensor, places: Tensor) -> Tensor:
    """array[places], by the op that is quickest for it."""
    return array.index_select(0, places.flatten()).view(places.shape)


def windows(array: Tensor, width: int, starts: Tensor) -> Tensor:
    """array[start : start + width] of every start: [...] -> [..., width]."""
    rows = array.unfold(0, width, 1).index_select(0, starts.flatten())
    return rows.view(*starts.shape, width)
