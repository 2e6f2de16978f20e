# SPDX-License-Identifier: Apache-2.0
"""Beam search against exhaustive scoring and against the plain Python search of plain_beam.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tzgen.decoding.beam import beam_search, free_beam_search
from tzgen.decoding.catalogues import SubCatalogues, item_mask
from tzgen.decoding.options import BeamOptions, BeamResult, BeamState
from tzgen.decoding.post import list_items
from tzgen.decoding.trie import Trie

from .plain_beam import RandomModel, exhaustive, plain_search

BOTH = pytest.mark.parametrize("dense_bytes", [0, 1 << 26], ids=["csr", "dense"])
SIZES = (6, 9, 4)


def some_codes(sizes: Sequence[int], count: int, seed: int = 1) -> Tensor:
    """Distinct codes in no order."""
    every = torch.cartesian_prod(*(torch.arange(size) for size in sizes)).view(-1, len(sizes))
    generator = torch.Generator().manual_seed(seed)
    return every[torch.randperm(len(every), generator=generator)[:count]]


def listed(result: BeamResult, row: int) -> list[tuple[tuple[int, ...], float]]:
    """The valid results of a row, checked to come first and to be filled as promised."""
    valid = result.valid[row]
    count = int(valid.sum())
    assert valid[:count].all() and not valid[count:].any()
    assert (result.codes[row, count:] == -1).all() and (result.leaves[row, count:] == -1).all()
    assert (result.scores[row, count:] == -torch.inf).all()
    codes = [tuple(code) for code in result.codes[row, :count].tolist()]
    return list(zip(codes, result.scores[row, :count].tolist(), strict=True))


def assert_same(
    got: list[tuple[tuple[int, ...], float]], want: list[tuple[tuple[int, ...], float]]
) -> None:
    assert [codes for codes, _ in got] == [codes for codes, _ in want]
    assert [score for _, score in got] == pytest.approx([score for _, score in want], abs=2e-5)


@BOTH
def test_equals_exhaustive_scoring_when_beams_cover_the_catalogue(dense_bytes: int) -> None:
    codes = some_codes(SIZES, 70)
    model = RandomModel(SIZES)
    trie = Trie.from_codes(codes, SIZES, dense_bytes=dense_bytes)
    result = beam_search(model.step, trie, 5, BeamOptions(beams=80))
    for row in range(5):
        scores = exhaustive(model.logits(row), codes.tolist())
        want = sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))
        assert_same(listed(result, row), want)
    assert result.codes.shape == (5, 80, 3) and result.valid.sum() == 5 * 70
    rows = list_items(trie, result, 70).items
    assert torch.equal(codes[rows], result.codes[:, :70])
    # encoded once a row: one beam at level 0, then no more beams than there are prefixes
    assert model.calls[0][:2] == (5, 1)
    assert model.calls[1][1] == len({code[0] for code in codes.tolist()})


OPTIONS = [
    {},
    {"renormalize": True},
    {"temperature": 0.5},
    {"temperature": 3.0, "renormalize": True},
    {"top_p": 0.7},
    {"top_p": 0.3, "renormalize": True, "temperature": 2.0},
    {"groups": 2, "group_penalty": 0.8},
    {"groups": 4, "group_penalty": 0.3, "renormalize": True},
    {"groups": 2, "group_penalty": 0.0},
    {"groups": 4, "group_penalty": 30.0, "top_p": 0.9},
]


@BOTH
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "none")
@pytest.mark.parametrize("beams", [8, (4, 12, 8)], ids=["even", "varied"])
def test_each_option_equals_plain_python(
    options: dict[str, Any], beams: Any, dense_bytes: int
) -> None:
    codes = some_codes(SIZES, 90)
    model = RandomModel(SIZES)
    trie = Trie.from_codes(codes, SIZES, dense_bytes=dense_bytes)
    result = beam_search(model.step, trie, 3, BeamOptions(beams=beams, **options))
    widths = (beams,) * 3 if isinstance(beams, int) else beams
    for row in range(3):
        want = plain_search(model.logits(row), codes.tolist(), widths, **options)
        assert_same(listed(result, row), want)


@pytest.mark.parametrize("options", [{}, OPTIONS[1], OPTIONS[6]], ids=lambda o: "-".join(o))
@BOTH
def test_seen_allow_and_deny_equal_the_search_without_those_items(
    options: dict[str, Any], dense_bytes: int
) -> None:
    """Beams narrower than the catalogue: a dead prefix must not cost a place at any level."""
    codes = some_codes(SIZES, 90)
    model = RandomModel(SIZES)
    trie = Trie.from_codes(codes, SIZES, dense_bytes=dense_bytes)
    allowed = {
        "odd": item_mask(trie, allow=torch.arange(1, 90, 2)),
        "all but few": item_mask(trie, deny=torch.tensor([3, 3, 4, 5])),
        "one prefix": codes[:, 0] == codes[0, 0],
    }
    catalogues = SubCatalogues.of(trie, allowed, dense_bytes=dense_bytes)
    names = ["one prefix", "odd", "all but few", "one prefix", "odd"]
    choice = catalogues.index(names)
    seen = torch.full((5, 40), -1)
    seen[0, :20] = torch.randint(0, 90, (20,))  # with repeats
    inside = (codes[:, 0] == codes[7, 0]).nonzero().squeeze(1)
    seen[1, : len(inside)] = inside  # empties a prefix of the first level
    seen[2, 5:35] = torch.arange(30)
    inside = (codes[:, 0] == codes[0, 0]).nonzero().squeeze(1)  # all that row 3 may get
    seen[3, : len(inside)] = inside
    seen[4] = torch.arange(60, 100)  # beyond the catalogue: padding
    search = BeamOptions(beams=(4, 6, 6), **options)
    plain = dict(options)
    for with_seen in (False, True):
        for with_catalogues in (False, True):
            result = beam_search(
                model.step,
                trie,
                5,
                search,
                seen=seen if with_seen else None,
                catalogues=catalogues if with_catalogues else None,
                choice=choice if with_catalogues else None,
            )
            for row in range(5):
                keep = torch.ones(90, dtype=torch.bool)
                if with_catalogues:
                    keep &= allowed[names[row]]
                if with_seen:
                    keep[[item for item in seen[row].tolist() if 0 <= item < 90]] = False
                want = plain_search(model.logits(row), codes[keep].tolist(), (4, 6, 6), **plain)
                assert_same(listed(result, row), want)


def test_a_single_sub_catalogue_is_the_default_and_may_be_empty() -> None:
    codes = some_codes(SIZES, 50)
    trie, model = Trie.from_codes(codes, SIZES), RandomModel(SIZES)
    some = SubCatalogues.of(trie, {"some": torch.arange(50) < 9})
    result = beam_search(model.step, trie, 2, BeamOptions(beams=20), catalogues=some)
    assert result.valid.sum(1).tolist() == [9, 9]
    assert sorted(list_items(trie, result, 9).items[1].tolist()) == list(range(9))
    nothing = SubCatalogues.of(trie, {"none": torch.zeros(50, dtype=torch.bool)})
    for renormalize in (False, True):
        options = BeamOptions(beams=20, renormalize=renormalize)
        result = beam_search(model.step, trie, 2, options, catalogues=nothing)
        assert not result.valid.any() and not result.scores.isnan().any()


def test_everything_seen_gives_nothing() -> None:
    codes = some_codes(SIZES, 30)
    trie, model = Trie.from_codes(codes, SIZES), RandomModel(SIZES)
    seen = torch.stack([torch.arange(30), torch.arange(30).clamp_max(28)])
    result = beam_search(model.step, trie, 2, BeamOptions(beams=4), seen=seen)
    assert result.valid.sum(1).tolist() == [0, 1]
    assert list_items(trie, result, 2).items.tolist() == [[-1, -1], [29, -1]]
    no_column = beam_search(model.step, trie, 2, BeamOptions(beams=4), seen=seen[:, :0])
    assert no_column.valid.all()


def test_seen_on_shared_leaves_counts_items() -> None:
    """A leaf dies with its last unseen item; before, it is listed without the seen ones."""
    codes = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 0], [1, 0], [1, 0]])
    trie, model = Trie.from_codes(codes, (2, 2), shared_leaves=True), RandomModel((2, 2))
    seen = torch.tensor([[0, 1, 1, -1, -1], [3, 5, 0, 3, 4], [3, 4, -1, -1, -1]])
    result = beam_search(model.step, trie, 3, BeamOptions(beams=4), seen=seen)
    found = [sorted(codes for codes, _ in listed(result, row)) for row in range(3)]
    assert found == [[(0, 1), (1, 0)], [(0, 0), (0, 1)], [(0, 0), (0, 1), (1, 0)]]
    items = list_items(trie, result, 6, seen=seen)
    assert [sorted(row[row >= 0].tolist()) for row in items.items] == [
        [2, 3, 4, 5],
        [1, 2],
        [0, 1, 2, 5],
    ]


@st.composite
def odd_cases(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], list[int], int]:
    sizes = draw(st.lists(st.sampled_from([1, 2, 3, 7, 33]), min_size=1, max_size=4))
    code = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    items = draw(st.lists(code, min_size=1, max_size=25, unique=True))
    return items, sizes, draw(st.integers(1, 12))


@given(case=odd_cases(), dense_bytes=st.sampled_from([0, 1 << 20]), renormalize=st.booleans())
@settings(max_examples=80, deadline=None)
def test_odd_catalogues(
    case: tuple[list[tuple[int, ...]], list[int], int], dense_bytes: int, renormalize: bool
) -> None:
    """Single items, chains, levels of one code, catalogues smaller than the beam."""
    items, sizes, beams = case
    trie = Trie.from_codes(torch.tensor(items), sizes, dense_bytes=dense_bytes)
    model = RandomModel(sizes, seed=3)
    options = BeamOptions(beams=beams, renormalize=renormalize)
    result = beam_search(model.step, trie, 2, options)
    assert result.codes.shape == (2, beams, len(sizes))
    for row in range(2):
        widths = [beams] * len(sizes)
        want = plain_search(model.logits(row), items, widths, renormalize=renormalize)
        assert_same(listed(result, row), want)


def test_every_result_is_an_item_and_none_comes_twice() -> None:
    sizes = (32, 32, 64, 5)
    codes = torch.stack([torch.randint(0, size, (3000,)) for size in sizes], 1).unique(dim=0)
    trie, model = Trie.from_codes(codes, sizes), RandomModel(sizes)
    assert {level.bias is None for level in trie.levels} == {True, False}
    for extra in ({}, {"sample": True}, {"groups": 5, "group_penalty": 1.0}, {"top_p": 0.5}):
        result = beam_search(model.step, trie, 16, BeamOptions(beams=20, **extra))
        found = result.codes[result.valid]
        assert (trie.find(found) >= 0).all() and len(found) >= 16
        assert torch.equal(trie.find(found), result.leaves[result.valid])
        for row in range(16):
            leaves = result.leaves[row][result.valid[row]].tolist()
            assert len(set(leaves)) == len(leaves)


def test_codes_whose_product_passes_int32() -> None:
    sizes = (50_000, 50_000, 3)
    codes = torch.stack([torch.randint(0, size, (9,)) for size in sizes], 1)
    codes[0] = torch.tensor([49_999, 49_999, 2])
    trie, model = Trie.from_codes(codes, sizes), RandomModel(sizes)
    result = beam_search(model.step, trie, 1, BeamOptions(beams=10))
    scores = exhaustive(model.logits(0), codes.tolist())
    want = sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))
    assert_same(listed(result, 0), want)


@BOTH
def test_equal_scores_come_in_the_order_of_codes(dense_bytes: int) -> None:
    sizes = (40, 40, 3)
    codes = some_codes(sizes, 900)
    trie = Trie.from_codes(codes, sizes, dense_bytes=dense_bytes)

    def flat(level: int, state: BeamState) -> Tensor:
        return torch.zeros(state.codes.shape[0] * state.num_beams, sizes[level])

    result = beam_search(flat, trie, 2, BeamOptions(beams=7))
    want = plain_search(lambda level, _: [0.0] * sizes[level], codes.tolist(), (7, 7, 7))
    assert [codes for codes, _ in listed(result, 1)] == [codes for codes, _ in want]

    def halves(level: int, state: BeamState) -> Tensor:
        even = torch.arange(sizes[level]) % 2 == 0
        return torch.where(even, 1.0, 0.0).expand(state.codes.shape[0] * state.num_beams, -1)

    found = listed(beam_search(halves, trie, 2, BeamOptions(beams=50)), 0)
    assert len({score for _, score in found}) < 10
    assert found == sorted(found, key=lambda entry: (-entry[1], entry[0]))


@pytest.mark.parametrize(
    "extra", [{}, {"renormalize": True}, {"groups": 3, "group_penalty": 0.5}, {"top_p": 0.6}]
)
def test_a_row_does_not_depend_on_its_batch(extra: dict[str, Any]) -> None:
    sizes = (32, 32, 8)
    codes = some_codes(sizes, 2000)
    trie, model = Trie.from_codes(codes, sizes), RandomModel(sizes)
    seen = torch.randint(-1, 2000, (9, 30))
    options = BeamOptions(beams=12, **extra)
    together = beam_search(model.step, trie, 9, options, seen=seen)
    for row in (0, 4, 8):

        def alone(level: int, state: BeamState, row: int = row) -> Tensor:
            spread = replace(state, codes=state.codes.expand(row + 1, -1, -1))
            return model.step(level, spread).view(row + 1, state.num_beams, -1)[row]

        single = beam_search(alone, trie, 1, options, seen=seen[row : row + 1])
        for name in ("codes", "scores", "keys", "leaves", "valid"):
            assert torch.equal(getattr(single, name)[0], getattr(together, name)[row]), name


def test_the_cache_of_a_beam_follows_it() -> None:
    """What `reorder` carries along is what the beam's own codes say."""
    sizes = (8, 8, 8, 8)
    codes = some_codes(sizes, 600)
    trie, model = Trie.from_codes(codes, sizes), RandomModel(sizes)
    for options in (BeamOptions(beams=9), BeamOptions(beams=12, groups=3, group_penalty=1.0)):
        history: list[Tensor] = [torch.arange(5, dtype=torch.int64).view(5, 1)]

        def step(level: int, state: BeamState, history: list[Tensor] = history) -> Tensor:
            kept = state.reorder(history[0])
            if level:
                kept = torch.cat([kept, state.tokens.view(-1, 1)], 1)
            history[0] = kept
            rows = torch.arange(5).view(5, 1, 1).expand(5, state.num_beams, 1)
            assert torch.equal(kept.view(5, state.num_beams, -1), torch.cat([rows, state.codes], 2))
            return model.step(level, state)

        beam_search(step, trie, 5, options)
        assert history[0].shape[1] == 4


def test_without_a_trie_results_may_be_no_items() -> None:
    codes = some_codes(SIZES, 60)
    model, trie = RandomModel(SIZES), Trie.from_codes(codes, SIZES)
    every = torch.cartesian_prod(*(torch.arange(size) for size in SIZES)).tolist()
    result = free_beam_search(model.step, SIZES, 3, BeamOptions(beams=15))
    for row in range(3):
        assert_same(listed(result, row), plain_search(model.logits(row), every, (15,) * 3))
    found = trie.find(result.codes)
    assert 0 < (found >= 0).sum() < found.numel()
    sampled = free_beam_search(model.step, SIZES, 3, BeamOptions(beams=15, sample=True))
    assert sampled.valid.all()


def test_half_precision_logits_and_an_empty_batch() -> None:
    codes = some_codes(SIZES, 50)
    trie, model = Trie.from_codes(codes, SIZES), RandomModel(SIZES)
    half = beam_search(
        lambda level, state: model.step(level, state).bfloat16(), trie, 2, BeamOptions(beams=5)
    )
    assert half.scores.dtype == torch.float32 and half.valid.all()
    empty = beam_search(model.step, trie, 0, BeamOptions(beams=5))
    assert empty.codes.shape == (0, 5, 3)


def test_nan_logits_give_no_results_for_that_row_alone() -> None:
    codes = some_codes(SIZES, 50)
    trie, model = Trie.from_codes(codes, SIZES), RandomModel(SIZES)

    def step(level: int, state: BeamState) -> Tensor:
        logits = model.step(level, state).view(2, state.num_beams, -1).clone()
        logits[0] = torch.nan
        return logits.flatten(0, 1)

    result = beam_search(step, trie, 2, BeamOptions(beams=5))
    assert result.valid.tolist() == [[False] * 5, [True] * 5]


def test_wrong_tensors_are_refused() -> None:
    trie, model = Trie.from_codes(some_codes(SIZES, 9), SIZES), RandomModel(SIZES)
    with pytest.raises(ValueError, match=r"level 0; \[2, 6\] were expected"):
        beam_search(lambda level, state: torch.zeros(2, 5), trie, 2, BeamOptions(beams=2))
    with pytest.raises(ValueError, match=r"seen is \(3, 1\)"):
        beam_search(model.step, trie, 2, BeamOptions(beams=2), seen=torch.zeros(3, 1).long())
    with pytest.raises(ValueError, match="groups need a trie"):
        free_beam_search(model.step, SIZES, 1, BeamOptions(beams=2, groups=2))
