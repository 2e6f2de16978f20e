# SPDX-License-Identifier: Apache-2.0
"""Stochastic beams against the probabilities of drawing without replacement."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tzgen.decoding.beam import beam_search
from tzgen.decoding.options import BeamOptions, BeamState, Step
from tzgen.decoding.trie import Trie

from .plain_beam import RandomModel, children, exhaustive, log_share, nucleus

CODES = [(0, 1), (0, 3), (1, 0), (2, 0), (2, 1), (2, 3)]
SIZES = (3, 4)
ROWS = 40_000


def one_row(model: RandomModel) -> Step:
    """The model's logits of row 0 for every row of the batch."""

    def step(level: int, state: BeamState) -> Tensor:
        place = torch.zeros(state.codes.shape[:2], dtype=torch.int64)
        if level:
            place = state.codes[:, :, 0] * 7919
        return model.tables[level][place % 101].flatten(0, 1)

    return step


def drawn_from(
    model: RandomModel, temperature: float, top_p: float
) -> dict[tuple[int, ...], float]:
    """The distribution over leaves that sampling promises: legal codes, renormalised per level."""
    logits_of, catalogue = model.logits(0), set(CODES)
    shares = {}
    for item in CODES:
        total = 0.0
        for level, code in enumerate(item):
            logits = [value / temperature for value in logits_of(level, item[:level])]
            kept = nucleus(logits, children(catalogue, item[:level]), top_p)
            total += log_share(logits, code, kept) if code in kept else -math.inf
        shares[item] = math.exp(total)
    assert sum(shares.values()) == pytest.approx(1)
    return shares


def chi_square(counts: dict, shares: dict, total: int) -> None:
    """Within five standard deviations of the statistic's mean (seeded: it cannot flicker)."""
    cells = [key for key, share in shares.items() if share > 0]
    assert all(counts.get(key, 0) == 0 for key, share in shares.items() if share == 0)
    statistic = sum(
        (counts.get(key, 0) - total * shares[key]) ** 2 / (total * shares[key]) for key in cells
    )
    freedom = len(cells) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * max(freedom, 1)), (statistic, freedom)


@pytest.mark.parametrize("dense_bytes", [0, 1 << 20], ids=["csr", "dense"])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.5, 1.0), (1.0, 0.8)])
def test_first_and_second_draws_have_the_right_frequencies(
    temperature: float, top_p: float, dense_bytes: int
) -> None:
    model = RandomModel(SIZES, scale=0.8)
    trie = Trie.from_codes(torch.tensor(CODES), SIZES, dense_bytes=dense_bytes)
    options = BeamOptions(beams=2, sample=True, temperature=temperature, top_p=top_p)
    generator = torch.Generator().manual_seed(7)
    result = beam_search(one_row(model), trie, ROWS, options, generator=generator)
    shares = drawn_from(model, temperature, top_p)
    pairs: dict[tuple, int] = {}
    for pair in map(tuple, result.leaves.tolist()):
        pairs[pair] = pairs.get(pair, 0) + 1
    assert all(first != second for first, second in pairs)
    ordered = sorted(CODES)
    q = [shares[item] for item in ordered]
    firsts: dict[int, int] = {}
    for (first, _), count in pairs.items():
        firsts[first] = firsts.get(first, 0) + count
    chi_square(firsts, dict(enumerate(q)), ROWS)
    both = {(a, b): q[a] * q[b] / (1 - q[a]) for a, b in itertools.permutations(range(len(q)), 2)}
    chi_square(pairs, both, ROWS)


def test_sampled_scores_are_log_probabilities_and_keys_descend() -> None:
    model = RandomModel(SIZES)
    trie = Trie.from_codes(torch.tensor(CODES), SIZES)
    scores = exhaustive(model.logits(0), CODES)
    ordered = sorted(CODES)
    for renormalize in (False, True):
        options = BeamOptions(beams=6, sample=True, renormalize=renormalize)
        result = beam_search(one_row(model), trie, 50, options)
        assert result.valid.all() and (result.keys.diff(dim=1) <= 0).all()
        shares = drawn_from(model, 1.0, 1.0)
        for leaves, got in zip(result.leaves.tolist(), result.scores.tolist(), strict=True):
            assert sorted(leaves) == list(range(6))
            items = [ordered[leaf] for leaf in leaves]
            want = [math.log(shares[i]) if renormalize else scores[i] for i in items]
            assert got == pytest.approx(want, abs=1e-5)


def test_the_same_seed_draws_the_same() -> None:
    model = RandomModel(SIZES)
    trie = Trie.from_codes(torch.tensor(CODES), SIZES)
    options = BeamOptions(beams=3, sample=True)
    draws = [
        beam_search(
            one_row(model), trie, 30, options, generator=torch.Generator().manual_seed(seed)
        ).leaves
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_more_beams_than_leaves() -> None:
    model = RandomModel(SIZES)
    trie = Trie.from_codes(torch.tensor(CODES[:2]), SIZES)
    result = beam_search(one_row(model), trie, 4, BeamOptions(beams=5, sample=True))
    assert result.valid.sum(1).tolist() == [2] * 4 and not result.scores.isnan().any()
