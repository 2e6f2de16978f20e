# SPDX-License-Identifier: Apache-2.0
"""Cached STU attention in Triton: every way to cut a row against the row in one piece.

On a CPU through Triton's interpreter, in small blocks; marked `gpu`, the same cases compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from cached_cases import SPECS, Cut, Joined, pages_of
from interpreted import Run, interpreter
from torch import Tensor

from tzgen.ops.hstu_attention import MaskSpec
from tzgen.ops.hstu_attention_cached import hstu_attention_cached

CUTS = {  # lengths, targets, cached
    "score": ([30, 12, 5], [14, 4, 5], [16, 8, 0]),
    "append": ([33, 20, 9], [0, 0, 0], [29, 3, 9]),
    "prefill": ([19, 1, 0], [0, 0, 0], [0, 0, 0]),
    "ragged deltas": ([23, 9, 14, 40], [3, 0, 14, 1], [17, 9, 0, 5]),
    "nothing new": ([7, 12], [0, 0], [7, 12]),
}


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Run]:
    with interpreter() as run:
        yield run


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(device: str, request: pytest.FixtureRequest) -> Run:
    """`run(attend, cut, device)` where the kernels of `device` run."""
    if device == "cpu":
        found: Run = request.getfixturevalue("interpreted")
        return found
    return lambda function, *args: function(*args)


def attend(args: tuple[Any, ...], options: dict[str, Any], device: str) -> Tensor:
    q, k, v, offsets, cache = args
    held = {
        name: value.to(device) for name, value in vars(cache).items() if isinstance(value, Tensor)
    }
    moved = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in options.items()
    }
    tensors = (x.to(device) for x in (q, k, v, offsets))
    longest = int(offsets.diff().max()) if offsets.numel() > 1 else 0
    return hstu_attention_cached(
        *tensors, replace(cache, **held), max_len=longest, kernel="TRITON", **moved
    ).cpu()


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.shape == want.shape and torch.isfinite(got).all()
    if want.numel() > 0:
        worst = (got.double() - want.double()).abs().amax() / want.double().abs().amax()
        assert worst <= tolerance, f"error {worst:.1e}"


def check(cut: Cut, device: str, run: Run, tolerance: float = 1e-5) -> None:
    close(run(attend, cut.args, cut.options, device), cut.want, tolerance)


@pytest.mark.parametrize("paged", [False, True], ids=["contiguous", "paged"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_mask(spec: MaskSpec, paged: bool, device: str, run: Run) -> None:
    """With both biases where the cache is paged."""
    joined = Joined(
        spec, lengths=[25, 9], targets=[4, 2], biased=paged, dtype=torch.float32, heads=1
    )
    for cached in ([18, 3], [4, 7]):
        check(joined.cut(cached, paged=paged), device, run)


@pytest.mark.parametrize("paged", [False, True], ids=["contiguous", "paged"])
@pytest.mark.parametrize("cut", CUTS)
def test_every_kind_of_batch(cut: str, paged: bool, device: str, run: Run) -> None:
    lengths, targets, cached = CUTS[cut]
    joined = Joined(MaskSpec(), lengths=lengths, targets=targets, dtype=torch.float32)
    check(joined.cut(cached, paged=paged), device, run)


@pytest.mark.parametrize("split", [0, 1, 15, 16, 17, 31, 33])
def test_tile_borders(split: int, device: str, run: Run) -> None:
    joined = Joined(MaskSpec(), lengths=[36], targets=[3], dtype=torch.float32, heads=1)
    check(joined.cut([split], paged=split % 2 == 1), device, run)


@pytest.mark.parametrize("page", [1, 3, 16, 64])
def test_pages_of_any_size(page: int, device: str, run: Run) -> None:
    """What is no token of a page is NaN; half precision."""
    joined = Joined(MaskSpec(), lengths=[21, 6], targets=[2, 1], dtype=torch.float16, heads=1)
    cut = joined.cut([17, 4])
    q, k, v, offsets, cache = cut.args
    cut.args = (q, k, v, offsets, pages_of(cache, page))
    check(cut, device, run, 4e-3)


def test_a_cache_that_is_a_strided_view(device: str, run: Run) -> None:
    """k and v of one block of memory, as a layer of a pool holds them."""
    joined = Joined(MaskSpec(), lengths=[20, 7], targets=[3, 2], dtype=torch.float32, widths=(6, 6))
    cut = joined.cut([15, 4], paged=True)
    q, k, v, offsets, cache = cut.args
    both = torch.stack((cache.k, cache.v), dim=1)
    cut.args = (q, k, v, offsets, replace(cache, k=both[:, 0], v=both[:, 1]))
    assert not cut.args[4].k.is_contiguous()
    check(cut, device, run)


def test_the_comparison_catches_a_wrong_page(interpreted: Run) -> None:
    joined = Joined(MaskSpec(), lengths=[20], targets=[3], dtype=torch.float32)
    cut = joined.cut([14], paged=True)
    check(cut, "cpu", interpreted)
    q, k, v, offsets, cache = cut.args
    cut.args = (q, k, v, offsets, replace(cache, table=cache.table.flip(1)))
    with pytest.raises(AssertionError):
        check(cut, "cpu", interpreted)
