# SPDX-License-Identifier: Apache-2.0
"""Batched beam search over the codes of a trie: every result is an item of the catalogue.

B rows, L levels of V_l codes, K_l live beams after level l. The model is a function

    step(level, state) -> logits [B * K, V_level]

called L times, with the beams of a row next to each other. Whatever the model keeps per beam (the
keys and values of the codes so far) it reorders itself by `state.reorder`; what all beams of a row
share (the encoded history) it keeps once per row. At level 0 there is one beam a row.

The score of a result is the sum of the log-probabilities of its codes. All results have L codes,
so nothing is normalised by length. Of equal scores the lower leaf comes first, which is the
lexicographic order of the codes, at the cut and in the list. The loop over levels is the only one;
no value is read back from the device, and all shapes follow from the trie, B and the options. Dead
beams (there are fewer legal prefixes than beams) keep their place with score -inf and code 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from tzgen.decoding.advance import Beams, LevelSearch
from tzgen.decoding.catalogues import SubCatalogues
from tzgen.decoding.expand import FreeSpace, TrieSpace
from tzgen.decoding.options import BeamOptions, BeamResult, BeamState, LevelOp, Step
from tzgen.decoding.seen import dead_nodes
from tzgen.decoding.trie import Trie


@torch.no_grad()
def beam_search(
    step: Step,
    trie: Trie,
    batch: int,
    options: BeamOptions,
    *,
    seen: Tensor | None = None,
    catalogues: SubCatalogues | None = None,
    choice: Tensor | None = None,
    generator: torch.Generator | None = None,
    level_op: LevelOp | None = None,
) -> BeamResult:
    """Search for `batch` rows.

    seen: int64 [B, M] items a row may not get, padded with -1; catalogues: the sub-catalogues, of
    which row b uses number choice[b] (int64 [B]; default the first); generator: for `sample`;
    level_op: does a level at once where the options are plain (`tzgen.ops.trie_level` on CPUs).
    """
    if catalogues is not None and choice is None:
        choice = torch.zeros(batch, dtype=torch.int64, device=trie.device)
    if seen is not None and (seen.dim() != 2 or seen.size(0) != batch):
        raise ValueError(f"seen is {tuple(seen.shape)}; it should be [{batch}, M] items")
    dead = None
    if seen is not None and seen.size(1) > 0:
        dead = dead_nodes(trie, seen, catalogues, choice)
    space = TrieSpace(trie, catalogues, choice, dead)
    return search(step, space, batch, options, trie.device, generator, level_op)


@torch.no_grad()
def free_beam_search(
    step: Step,
    sizes: Sequence[int],
    batch: int,
    options: BeamOptions,
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> BeamResult:
    """Without a trie, so that results may be no items: `leaves` are -1, ask `Trie.find(codes)`."""
    if options.groups > 1:
        raise ValueError("groups need a trie, which tells equal results of two groups")
    result = search(step, FreeSpace(sizes), batch, options, torch.device(device), generator)
    return BeamResult(
        result.codes,
        result.scores,
        result.keys,
        torch.full_like(result.leaves, -1),
        result.valid,
    )


def search(
    step: Step,
    space: TrieSpace | FreeSpace,
    batch: int,
    options: BeamOptions,
    device: torch.device,
    generator: torch.Generator | None,
    level_op: LevelOp | None = None,
) -> BeamResult:
    """The loop over levels."""
    num_levels = len(space.sizes)
    widths = options.widths(num_levels)
    zero = torch.zeros(batch, 1, device=device)
    nodes = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    beams = Beams(nodes, zero, zero, zero, nodes[:, :, None].expand(batch, 1, 0))
    rows: Tensor | None = None
    for depth, size in enumerate(space.sizes):
        num_beams = beams.nodes.size(1)
        logits = step(depth, BeamState(beams.codes, rows))
        if logits.shape != (batch * num_beams, size):
            raise ValueError(
                f"step gave logits {tuple(logits.shape)} at level {depth}; "
                f"[{batch * num_beams}, {size}] were expected: {batch} rows of {num_beams} beams"
            )
        logits = logits.to(torch.float32).view(batch, num_beams, size)
        if options.temperature != 1:
            logits = logits / options.temperature
        level = LevelSearch(space, depth, widths[depth], options, generator)
        beams, parents = level.advance(beams, logits, level_op)
        first = torch.arange(0, batch * num_beams, num_beams, device=device)
        rows = (parents + first.unsqueeze(1)).flatten()
    return finish(beams, widths[-1], options)


def finish(beams: Beams, width: int, options: BeamOptions) -> BeamResult:
    """Best first, equal ones by leaf; filled up to `width` places."""
    by_leaf = torch.sort(beams.nodes, dim=-1, stable=True).indices
    ranks = (beams.keys if options.sample else beams.scores).gather(1, by_leaf)
    best = torch.sort(ranks, dim=-1, descending=True, stable=True).indices
    order = by_leaf.gather(1, best)
    places = (0, width - order.size(1))
    scores = pad(beams.scores.gather(1, order), places, value=-torch.inf)
    keys = pad(beams.keys.gather(1, order), places, value=-torch.inf)
    leaves = pad(beams.nodes.gather(1, order), places)
    codes = beams.codes.gather(1, order.unsqueeze(2).expand(-1, -1, beams.codes.size(2)))
    codes = pad(codes, (0, 0, *places))
    valid = scores > -torch.inf
    return BeamResult(
        codes.masked_fill(~valid.unsqueeze(2), -1),
        scores,
        keys,
        leaves.masked_fill(~valid, -1),
        valid,
    )
