# SPDX-License-Identifier: Apache-2.0
"""The same search in plain Python over tuples, sets and floats: the specification for the tests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from tzgen.decoding.options import BeamState

Prefix = tuple[int, ...]
Logits = Callable[[int, Prefix], list[float]]
MULTIPLIERS = (7919, 104729, 31, 1299709, 17)


class RandomModel:
    """Logits that depend on the row of the batch and on the whole prefix, and on nothing else."""

    def __init__(self, sizes: Sequence[int], *, seed: int = 0, scale: float = 2.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tables = [scale * torch.randn(101, size, generator=generator) for size in sizes]
        self.calls: list[tuple[int, ...]] = []

    def step(self, level: int, state: BeamState) -> Tensor:
        self.calls.append(tuple(state.codes.shape))
        rows = torch.arange(state.codes.size(0)).view(-1, 1).expand(state.codes.shape[:2])
        place = rows * 53
        for depth in range(level):
            place = place + state.codes[:, :, depth] * MULTIPLIERS[depth]
        return self.tables[level][place % 101].flatten(0, 1)

    def logits(self, row: int) -> Logits:
        def of(level: int, prefix: Prefix) -> list[float]:
            place = row * 53 + sum(c * m for c, m in zip(prefix, MULTIPLIERS, strict=False))
            return self.tables[level][place % 101].tolist()

        return of


def log_share(logits: Sequence[float], code: int, among: Iterable[int]) -> float:
    peak = max(logits[c] for c in among)
    total = sum(math.exp(logits[c] - peak) for c in among)
    return logits[code] - peak - math.log(total)


def nucleus(logits: Sequence[float], legal: Sequence[int], top_p: float) -> list[int]:
    """Likeliest first until their shares reach top_p."""
    ordered = sorted(legal, key=lambda code: (-logits[code], code))
    kept, total = [], 0.0
    for code in ordered:
        if total >= top_p:
            break
        kept.append(code)
        total += math.exp(log_share(logits, code, legal))
    return sorted(kept)


def children(catalogue: set[Prefix], prefix: Prefix) -> list[int]:
    depth = len(prefix)
    return sorted({item[depth] for item in catalogue if item[:depth] == prefix})


def plain_search(
    logits_of: Logits,
    catalogue: Iterable[Sequence[int]],
    beams: Sequence[int],
    *,
    renormalize: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    groups: int = 1,
    group_penalty: float = 0.0,
) -> list[tuple[Prefix, float]]:
    """(codes, score) best first; `catalogue` holds the codes of the permitted items alone."""
    items = {tuple(int(code) for code in item) for item in catalogue}
    live: list[list[tuple[float, Prefix, float]]] = [[(0.0, (), 0.0)] for _ in range(groups)]
    for level, width in enumerate(beams):
        counts: Counter[int] = Counter()
        finished: set[Prefix] = set()
        for group in range(groups):
            found = []
            for key, prefix, score in live[group]:
                legal = children(items, prefix)
                if not legal:
                    continue
                logits = [value / temperature for value in logits_of(level, prefix)]
                among = legal if renormalize else range(len(logits))
                for code in nucleus(logits, legal, top_p):
                    gain = log_share(logits, code, among)
                    new = (*prefix, code)
                    if new not in finished:
                        paid = group_penalty * counts[code]
                        found.append((key + gain - paid, new, score + gain))
            found.sort(key=lambda entry: (-entry[0], entry[1]))
            live[group] = found[: width // groups]
            counts.update(prefix[-1] for _, prefix, _ in live[group])
            if level + 1 == len(beams):
                finished |= {prefix for _, prefix, _ in live[group]}
    together = [entry for group in live for entry in group]
    together.sort(key=lambda entry: (-entry[2], entry[1]))
    return [(prefix, score) for _, prefix, score in together]


def exhaustive(logits_of: Logits, catalogue: Iterable[Sequence[int]]) -> dict[Prefix, float]:
    """The log-probability of every item's codes, with no search at all."""
    scores = {}
    for item in catalogue:
        codes = tuple(int(code) for code in item)
        scores[codes] = sum(
            log_share(row, codes[level], range(len(row)))
            for level in range(len(codes))
            for row in [logits_of(level, codes[:level])]
        )
    return scores
