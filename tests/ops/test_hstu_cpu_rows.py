# SPDX-License-Identifier: Apache-2.0
"""Rows of the pure PyTorch attention: each computed once, no visible pair lost, bounded memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from attention_cases import SPECS, Case, compare, op
from torch import Tensor

from tzgen.ops.hstu_attention import MaskSpec, cpu, cpu_rows, dense_mask, hstu_attention_reference
from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention.cpu_rows import Rows

EDGES = (cpu_rows.STRIP, cpu_rows.LONG, cpu_rows.TOGETHER)
WIDE = [  # contextual tokens that fill more than a strip
    pytest.param(MaskSpec(contextual_len=40), id="wide"),
    pytest.param(MaskSpec(contextual_len=40, append_stable=True), id="wide, stable"),
]
LENGTHS = [0, 1, *(edge + step for edge in EDGES for step in (-1, 0, 1)), 2, 40, 700]


def planned(lengths: list[int], spec: MaskSpec, targets: list[int], heads: int = 4) -> list[Rows]:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    call = Call(spec, max(lengths), 1.0, 1.0, 1.0, torch.tensor(targets), None, None, None)
    return list(cpu_rows.plan(offsets, call, heads))


def covered(rows: Rows, row: int) -> tuple[Tensor, Tensor]:
    """Pairs [n, n] that a row's strips compute, and those that they do not mask."""
    found = torch.zeros(rows.length, rows.length, dtype=torch.int64)
    bare = torch.zeros_like(found)
    for strip in rows.strips:
        if row < strip.count:
            for keys in strip.keys:
                found[strip.start : strip.stop, keys.start : keys.stop] += 1
                bare[strip.start : strip.stop, keys.start : keys.masked] += 1
            if strip.own_key:
                found[strip.start : strip.stop, strip.start : strip.stop] += torch.eye(
                    strip.stop - strip.start, dtype=torch.int64
                )
    return found, bare


@pytest.mark.parametrize("spec", SPECS + WIDE)
def test_every_visible_pair_is_computed_once(spec: MaskSpec) -> None:
    lengths = [0, 1, 31, 32, 33, 256, 257, 90, 60, 3]
    targets = [0, 1, 0, 32, 5, 20, 1, 70, 60, 0]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    seen_rows = []
    for rows in planned(lengths, spec, targets):
        for row in range(rows.group):
            first = int(rows.source.view(rows.group, -1)[row, 0])
            place = next(i for i, n in enumerate(lengths) if n and int(offsets[i]) == first)
            seen_rows.append(place)
            length = lengths[place]
            times = torch.arange(length) % 7  # not in order: what is seen by time lies ahead too
            mask = dense_mask(length, targets[place], spec, times)
            found, bare = (x[:length, :length] for x in covered(rows, row))
            assert int(found.max()) == 1 and bool((found.bool() | ~mask).all()), place
            assert bool((mask | (bare == 0)).all()), f"row {place} sees what is hidden from it"
    assert sorted(seen_rows) == [i for i, n in enumerate(lengths) if n]


def test_places_and_tokens_are_each_other() -> None:
    total = sum(LENGTHS)
    back = torch.full((total,), -1)
    for rows in planned(LENGTHS, MaskSpec(), [0] * len(LENGTHS)):
        assert bool((rows.tokens.diff() > 0).all()), "not ascending"
        assert torch.equal(rows.source[rows.places], rows.tokens)
        back[rows.tokens] = rows.tokens
        held = rows.places.numel() == rows.source.numel()
        assert (rows.kept is None) == held
        if rows.kept is not None:
            assert torch.equal(rows.kept.flatten().nonzero().flatten(), rows.places.sort().values)
    assert torch.equal(back, torch.arange(total))


@pytest.mark.parametrize(
    "lengths",
    [[1000, *range(1, 400)], [1] * 5000 + [1024], [1024] * 40, [200] * 300, LENGTHS],
    ids=["zipf", "ones", "long", "equal", "edges"],
)
def test_layouts_are_bounded(lengths: list[int]) -> None:
    for rows in planned(lengths, MaskSpec(), [0] * len(lengths)):
        if rows.length <= cpu_rows.TOGETHER:
            assert rows.source.numel() <= 2 * rows.tokens.numel()
        if rows.group > 1:
            tiles = [
                strip.count * 4 * (strip.stop - strip.start) * keys.stop * 4
                for strip in rows.strips
                for keys in strip.keys
            ]
            assert max(tiles) <= 2 * cpu_rows.TILE_BYTES


def test_a_batch_of_like_rows_is_one_layout() -> None:
    """Two of them would be twice as many operators, which is what short rows wait for."""
    make = torch.Generator().manual_seed(0)
    lengths = torch.randint(50, 201, (32,), generator=make).tolist()
    (rows,) = planned(lengths, MaskSpec(), [3] * 32)
    counts = [strip.count for strip in rows.strips]
    assert counts[0] == 32 and counts == sorted(counts, reverse=True) and counts[-1] < 8


@pytest.mark.parametrize("biased", [False, True], ids=["", "rab"])
def test_matches_the_reference_at_the_edges(biased: bool) -> None:
    targets = [min(n, 7 * (i % 3)) for i, n in enumerate(LENGTHS)]
    case = Case(MaskSpec(), lengths=LENGTHS, targets=targets, biased=biased, widths=(4, 6))
    compare(case.run(op("CPU_TORCH")), case.run(hstu_attention_reference), 1e-5)


@pytest.mark.parametrize("spec", SPECS + WIDE)
def test_strips_of_long_rows(spec: MaskSpec) -> None:
    """Rows of more than 256 tokens have wider strips; targets reach over two of them."""
    lengths, targets = [300, 0, 257, 1, 290], [70, 0, 3, 1, 0]
    case = Case(spec, lengths=lengths, targets=targets, dtype=torch.float64, widths=(3, 2))
    compare(case.run(op("CPU_TORCH")), case.run(hstu_attention_reference), 1e-12)


def test_twice_the_same() -> None:
    case = Case(MaskSpec(contextual_len=2), lengths=[900, 70, 0, 1100, 33], targets=[9, 0, 0, 5, 1])
    first, again = case.run(op("CPU_TORCH")), case.run(op("CPU_TORCH"))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_hidden_pairs_weigh_nothing(dtype: torch.dtype) -> None:
    """Exactly, and whatever was added to them; a vector's worth and single numbers."""
    for count in (1, 37):
        scores = torch.full((count,), 60.0, dtype=dtype).add_(cpu.HIDDEN)
        assert not F.silu(scores).any()
        gradient = torch.full_like(scores, -3.0)
        assert not torch.ops.aten.silu_backward(gradient, scores).any()
