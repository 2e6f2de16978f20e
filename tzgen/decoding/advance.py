# SPDX-License-Identifier: Apache-2.0
"""One level of a beam search: from the live beams and the model's logits to the next live beams.

B rows, K live beams, V codes, W candidate slots a beam, k beams kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tzgen.decoding.choose import log_sum_exp, nucleus, perturb, top_slots
from tzgen.decoding.expand import Candidates, FreeSpace, TrieSpace
from tzgen.decoding.options import BeamOptions, LevelOp
from tzgen.decoding.seen import Dead


@dataclass(frozen=True)
class Beams:
    """Live beams [B, K]; nodes ascend within a group, dead beams (score -inf) last."""

    nodes: Tensor  # int64
    scores: Tensor  # float32, sums of log-probabilities
    keys: Tensor  # float32, what is ranked: scores, penalised scores, perturbed log_q
    log_q: Tensor  # float32, of the distribution that `sample` draws from; else the scores
    codes: Tensor  # int64 [B, K, level]

    def of(self, beams: slice) -> Beams:
        return Beams(
            self.nodes[:, beams],
            self.scores[:, beams],
            self.keys[:, beams],
            self.log_q[:, beams],
            self.codes[:, beams],
        )


class LevelSearch:
    """Level `depth`, after which `width` beams are kept (fewer where there are fewer prefixes)."""

    def __init__(
        self,
        space: TrieSpace | FreeSpace,
        depth: int,
        width: int,
        options: BeamOptions,
        generator: torch.Generator | None,
    ) -> None:
        self.space, self.depth, self.options, self.generator = space, depth, options, generator
        self.limit = space.limit(depth, width // options.groups)
        self.last = depth + 1 == len(space.sizes)

    def advance(
        self, beams: Beams, logits: Tensor, level_op: LevelOp | None = None
    ) -> tuple[Beams, Tensor]:
        """logits float32 [B, K, V] -> the new beams, and the old beam each continues [B, k]."""
        if level_op is not None and self.options.plain and isinstance(self.space, TrieSpace):
            return self.at_once(self.space, beams, logits, level_op)
        if not self.options.renormalize:
            logits = logits.log_softmax(-1)
        candidates = self.space.expand(self.depth, beams.nodes, logits)
        groups = self.options.groups
        if groups == 1:
            values = self.space.seen(self.depth, candidates)
            return self.best(beams, candidates, *self.weigh(beams, values))
        share = beams.nodes.size(1) // groups  # 0 at the first level: all groups start at the root
        counts = torch.zeros_like(logits[:, 0])
        parts: list[tuple[Beams, Tensor]] = []
        for group in range(groups):
            mine = slice(group * share, (group + 1) * share) if share else slice(0, 1)
            part, parents = self.one_group(
                beams.of(mine),
                candidates.of(mine),
                counts,
                [found for found, _ in parts],
            )
            parts.append((part, parents + mine.start))
            alive = (part.scores > -torch.inf).to(counts.dtype)
            counts = counts.scatter_add(1, part.codes[:, :, -1], alive)
        return joined([part for part, _ in parts]), torch.cat([above for _, above in parts], 1)

    def at_once(
        self, space: TrieSpace, beams: Beams, logits: Tensor, level_op: LevelOp
    ) -> tuple[Beams, Tensor]:
        """`advance` by the op."""
        level = space.trie.levels[self.depth]
        dead = None if space.dead is None else space.dead[self.depth]
        scores, nodes, parents, tokens = level_op(
            logits,
            beams.scores,
            beams.nodes,
            tokens=level.tokens,
            indptr=level.indptr,
            alive=None if space.catalogues is None else space.catalogues.alive[self.depth],
            choice=space.choice,
            dead_nodes=None if dead is None else dead.nodes,
            dead_parents=None if dead is None else dead.parents,
            num_nodes=level.num_nodes,
            width=min(self.limit, beams.nodes.size(1) * level.branching),
            renormalize=self.options.renormalize,
        )
        codes = beams.codes.gather(1, parents.unsqueeze(2).expand(-1, -1, self.depth))
        codes = torch.cat([codes, tokens.unsqueeze(2)], 2)
        return Beams(nodes, scores, scores, scores, codes), parents

    def one_group(
        self,
        beams: Beams,
        candidates: Candidates,
        counts: Tensor,
        earlier: list[Beams],
    ) -> tuple[Beams, Tensor]:
        """Codes that earlier groups chose `counts` [B, V] times cost; no result is given twice."""
        values = self.space.seen(self.depth, candidates)
        scores, _, log_q = self.weigh(beams, values)
        paid = (beams.keys - beams.scores).nan_to_num()  # dead beams: -inf - -inf
        costs = candidates.per_code(counts) * self.options.group_penalty
        keys = scores + (paid.unsqueeze(2) - costs)
        if self.last and earlier:
            leaves = torch.cat([part.nodes for part in earlier], 1)
            keys = self.space.forbid(self.depth, candidates, keys, self.taken(leaves))
        return self.best(beams, candidates, scores, keys, log_q)

    def taken(self, leaves: Tensor) -> Dead:
        return Dead(leaves, self.space.parents(self.depth, leaves))

    def weigh(self, beams: Beams, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, K, W], -inf where not legal -> scores, keys and log_q of the slots.

        With `renormalize` they are normalised here, over what is legal; else they were before.
        """
        kept = nucleus(values, self.options.top_p) if self.options.top_p < 1 else values
        shares = kept - log_sum_exp(values) if self.options.renormalize else kept
        before = beams.scores.unsqueeze(2)
        if not self.options.sample:
            # Groups weigh the same values one after another; else nobody needs them any more.
            ours = self.space.fresh and self.options.groups == 1
            scores = shares.add_(before) if ours else shares + before
            return scores, scores, scores
        scores = shares + before
        log_q = (kept - log_sum_exp(kept)) + beams.log_q.unsqueeze(2)
        return scores, perturb(log_q, beams.keys, self.generator), log_q

    def best(
        self, beams: Beams, candidates: Candidates, scores: Tensor, keys: Tensor, log_q: Tensor
    ) -> tuple[Beams, Tensor]:
        """The candidates with the largest keys, and the old beams they continue."""
        flat = keys.flatten(1)
        slots = top_slots(flat, self.limit)
        dead = slots == flat.size(1)
        slots = slots.clamp_max(flat.size(1) - 1)
        tokens = candidates.token_at(slots).masked_fill_(dead, 0)
        nodes, parents = self.space.step(self.depth, candidates, slots, tokens)
        codes = beams.codes.gather(1, parents.unsqueeze(2).expand(-1, -1, self.depth))

        def at(x: Tensor) -> Tensor:
            return x.flatten(1).gather(1, slots).masked_fill_(dead, -torch.inf)

        kept = at(scores)
        new = Beams(
            nodes.masked_fill_(dead, self.space.nowhere(self.depth)),
            kept,
            kept if keys is scores else at(keys),
            kept if log_q is scores else at(log_q),
            torch.cat([codes, tokens.unsqueeze(2)], 2),
        )
        return new, parents


def joined(parts: list[Beams]) -> Beams:
    """Groups next to each other."""
    return Beams(
        torch.cat([part.nodes for part in parts], 1),
        torch.cat([part.scores for part in parts], 1),
        torch.cat([part.keys for part in parts], 1),
        torch.cat([part.log_q for part in parts], 1),
        torch.cat([part.codes for part in parts], 1),
    )
