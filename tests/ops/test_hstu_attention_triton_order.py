# SPDX-License-Identifier: Apache-2.0
"""The list of tiles: each once, heaviest first; and the table of configs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from tzgen.ops.hstu_attention import MaskSpec, triton_configs
from tzgen.ops.hstu_attention.triton_configs import Config, Shape, Tuning, shipped_config
from tzgen.ops.hstu_attention.triton_order import tile_order

BLOCK = 16
LENGTHS = torch.tensor([0, 1, 100, BLOCK, 5 * BLOCK + 1, 40])
TARGETS = torch.tensor([0, 1, 70, 3, 0, 40])
OFFSETS = torch.cat([torch.zeros(1, dtype=torch.int64), LENGTHS.cumsum(0)])
TOTAL = int(LENGTHS.sum())


def listed(mask: MaskSpec, *, by_key: bool = False, max_len: int = 100) -> list[tuple[int, int]]:
    order = tile_order(
        OFFSETS, TARGETS, mask, block=BLOCK, max_len=max_len, total=TOTAL, by_key=by_key
    )
    assert order.codes is not None and order.codes.numel() == order.slots
    return [divmod(code, order.tiles_per_row) for code in order.codes.tolist()]


@pytest.mark.parametrize("by_key", [False, True], ids=["queries", "keys"])
@pytest.mark.parametrize("max_len", [100, 1 << 20])
def test_every_tile_is_there_once_and_few_others(by_key: bool, max_len: int) -> None:
    found = listed(MaskSpec(), by_key=by_key, max_len=max_len)
    real = {(row, tile) for row, n in enumerate(LENGTHS.tolist()) for tile in range(-(-n // BLOCK))}
    assert len(found) == len(set(found)) and real <= set(found)
    assert len(found) <= TOTAL // BLOCK + len(LENGTHS)


def test_heaviest_first() -> None:
    """Row 4 has 81 events: its last tile sees most; of row 2 all tiles see at most 30 events."""
    assert listed(MaskSpec())[:4] == [(4, 5), (4, 4), (4, 3), (4, 2)]
    by_key = listed(MaskSpec(), by_key=True)
    assert by_key[:2] == [(2, 0), (2, 1)], "the first keys of the longest row are seen most"
    assert by_key.index((4, 0)) < by_key.index((4, 1)) < by_key.index((5, 0))


def test_a_window_makes_tiles_alike() -> None:
    found = listed(MaskSpec(max_attn_len=8))
    assert found.index((4, 5)) > found.index((4, 2)), "stable where weights are equal"


def test_few_tiles_are_not_listed() -> None:
    order = tile_order(OFFSETS, None, MaskSpec(), block=32, max_len=100, total=TOTAL)
    assert order.codes is None and order.slots == 6 * 4


def shapes() -> list[Shape]:
    product = itertools.product(
        (64, 128, 256), (False, True), (False, True), (False, True), (80, 90)
    )
    return [
        Shape(width, half, long, biased, capability, "ieee")
        for width, half, long, biased, capability in product
    ]


@pytest.mark.parametrize("kernel", ["forward", "keys", "queries"])
def test_sums_do_not_depend_on_the_lengths(kernel: str) -> None:
    """The dimension that is summed over is cut the same for short and for long batches."""
    for shape in shapes():
        short, long = (shipped_config(kernel, replace(shape, long=x)) for x in (False, True))
        name = "block_m" if kernel == "keys" else "block_n"
        assert getattr(short, name) == getattr(long, name), shape


def test_tuning_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = shapes()[-1]
    chosen = Config(32, 32, 4, 2)
    calls: list[Config] = []

    def fastest(default: Config, run: object) -> Config:
        calls.append(default)
        return chosen

    monkeypatch.setattr(triton_configs, "fastest", fastest)
    assert Tuning().choose("forward", shape, calls.append) == shipped_config("forward", shape)
    assert not calls
    tuning = Tuning(autotune=True)
    assert [tuning.choose("forward", shape, calls.append) for _ in range(2)] == [chosen, chosen]
    assert len(calls) == 1, "once a shape"
    forced = Tuning({"forward": Config(64, 64, 4, 1)}, autotune=True)
    assert forced.choose("forward", shape, calls.append) == Config(64, 64, 4, 1)
    assert Tuning().uses_fast_silu(shape) and not Tuning(fast_silu=False).uses_fast_silu(shape)
    assert not Tuning().uses_fast_silu(replace(shape, half=False))
