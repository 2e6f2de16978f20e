# SPDX-License-Identifier: Apache-2.0
"""The C++ level against the torch search: the same results, ties and filters included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tzgen.decoding import BeamOptions, BeamResult, BeamState, SubCatalogues, Trie, beam_search
from tzgen.ops import native
from tzgen.ops.trie_level import level_op, trie_level

SIZES = (7, 40, 19, 3)


@pytest.fixture(autouse=True)
def built() -> None:
    if not native.available():
        pytest.skip("needs a C++ compiler")


class Model:
    """Logits by row and prefix; integers when `steps` is given, so that scores are often equal."""

    def __init__(self, sizes: tuple[int, ...], steps: int | None = None) -> None:
        self.tables = [torch.randn(97, size) * 3 for size in sizes]
        if steps is not None:
            self.tables = [table.mul(steps).round() for table in self.tables]

    def step(self, level: int, state: BeamState) -> Tensor:
        place = torch.arange(state.codes.size(0)).view(-1, 1) * 31
        place = place + (state.codes * torch.tensor([5, 11, 23, 41])[:level]).sum(-1)
        return self.tables[level][place % 97].flatten(0, 1)


def both(step: Any, trie: Trie, batch: int, options: BeamOptions, **more: Any) -> None:
    """The two searches agree."""
    want = beam_search(step, trie, batch, options, **more)
    got = beam_search(step, trie, batch, options, **more, level_op=trie_level)
    for name in vars(want):
        left, right = getattr(got, name), getattr(want, name)
        torch.testing.assert_close(
            left, right, atol=2e-6, rtol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def random_trie(sizes: tuple[int, ...], items: int) -> Trie:
    codes = torch.stack([torch.randint(0, size, (items,)) for size in sizes], 1)
    return Trie.from_codes(codes, sizes, shared_leaves=True)


@pytest.mark.parametrize("items", [1, 30, 3000])
@pytest.mark.parametrize("beams", [1, 9, (3, 40, 17, 25)])
@pytest.mark.parametrize("extra", [{}, {"renormalize": True}, {"temperature": 0.3}])
def test_equals_the_torch_search(items: int, beams: Any, extra: dict[str, Any]) -> None:
    trie, model = random_trie(SIZES, items), Model(SIZES)
    both(model.step, trie, 5, BeamOptions(beams=beams, **extra))


@pytest.mark.parametrize("renormalize", [False, True])
def test_filters(renormalize: bool) -> None:
    trie, model = random_trie(SIZES, 400), Model(SIZES)
    options = BeamOptions(beams=12, renormalize=renormalize)
    seen = torch.randint(-1, 400, (6, 80))
    seen[0] = -1
    masks = {"few": torch.rand(400) < 0.1, "none": torch.zeros(400, dtype=torch.bool)}
    catalogues = SubCatalogues.of(trie, masks | {"most": torch.rand(400) < 0.9})
    choice = torch.tensor([0, 1, 2, 0, 2, 2])
    both(model.step, trie, 6, options, seen=seen)
    both(model.step, trie, 6, options, catalogues=catalogues, choice=choice)
    both(model.step, trie, 6, options, catalogues=catalogues, choice=choice, seen=seen)
    everything = torch.arange(400).expand(6, 400)
    both(model.step, trie, 6, options, seen=everything)


def test_ties_go_to_the_lower_leaf() -> None:
    trie = random_trie(SIZES, 2000)

    def flat(level: int, state: BeamState) -> Tensor:
        return torch.zeros(state.codes.size(0) * state.num_beams, SIZES[level])

    for beams in (1, 13, 60):
        both(flat, trie, 3, BeamOptions(beams=beams))
    both(Model((8, 8, 8), steps=0).step, random_trie((8, 8, 8), 300), 4, BeamOptions(beams=21))


def test_odd_logits() -> None:
    trie, model = random_trie(SIZES, 500), Model(SIZES)

    def step(level: int, state: BeamState) -> Tensor:
        logits = model.step(level, state).view(4, state.num_beams, -1).clone()
        logits[1] *= 60  # most exponentials underflow
        logits[2, :, ::2] = -torch.inf
        logits[3, :, -1] = torch.nan
        return logits.flatten(0, 1)

    options = BeamOptions(beams=10)
    both(step, trie, 4, options)
    result: BeamResult = beam_search(step, trie, 4, options, level_op=trie_level)
    assert result.valid.sum(1).tolist()[::3] == [10, 0]
    empty = beam_search(model.step, trie, 0, options, level_op=trie_level)
    assert empty.codes.shape == (0, 10, 4)


def test_other_options_are_searched_in_torch() -> None:
    trie, model = random_trie(SIZES, 300), Model(SIZES)

    def refuse(*args: Any, **more: Any) -> Any:
        raise AssertionError("the op has no such option")

    for extra in ({"top_p": 0.5}, {"sample": True}, {"groups": 2, "group_penalty": 1.0}):
        options = BeamOptions(beams=4, **extra)
        assert beam_search(model.step, trie, 2, options, level_op=refuse).valid.any()


def test_dispatch_and_refusals() -> None:
    assert level_op("cpu") is trie_level and level_op("cuda") is None
    level = random_trie((4,), 5).levels[0]
    given = {"tokens": level.tokens, "indptr": level.indptr, "num_nodes": level.num_nodes}
    given |= dict.fromkeys(["alive", "choice", "dead_nodes", "dead_parents"])
    given |= {"width": 2, "renormalize": False}
    zeros = torch.zeros(2, 1)
    with pytest.raises(ValueError, match=r"float32 logits.*float64"):
        trie_level(torch.zeros(2, 1, 4).double(), zeros, zeros.long(), **given)
    with pytest.raises(ValueError, match=r"int32 tokens.*int64"):
        more = given | {"tokens": level.tokens.long()}
        trie_level(torch.zeros(2, 1, 4), zeros, zeros.long(), **more)
