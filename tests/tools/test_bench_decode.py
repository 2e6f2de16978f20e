# SPDX-License-Identifier: Apache-2.0
"""What the decoding benchmark compares finds the same items, and its report has every figure."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import bench_decode
import pytest
import torch

from tzgen.decoding import Trie


@pytest.fixture
def small() -> tuple[argparse.Namespace, torch.Tensor, Trie]:
    torch.manual_seed(0)
    codes = bench_decode.quantise(600, [8, 8, 8])
    sizes = [8, 8, 8, int(codes[:, -1].max()) + 1]
    args = argparse.Namespace(batch_size=3, beams=7, device="cpu")
    return args, codes, Trie.from_codes(codes, sizes)


def test_all_constrained_ways_find_the_same_items(
    small: tuple[argparse.Namespace, torch.Tensor, Trie],
) -> None:
    args, codes, trie = small
    assert trie.num_items == 600 and len(codes.unique(dim=0)) == 600
    ways = bench_decode.search_alone(args, codes, trie)
    found = {name: run() for name, run in ways.items()}

    def sets(got: torch.Tensor) -> list[set[tuple[int, ...]]]:
        return [set(map(tuple, row)) for row in got.tolist()]

    for name, got in found.items():
        if name in ("unconstrained", "plain top-k"):
            assert sets(got) == sets(found["plain top-k"]), name
        else:
            assert sets(got) == sets(found["dict trie"]), name
            assert (trie.find(got) >= 0).all()


def test_decoders_find_items_whatever_searches(
    small: tuple[argparse.Namespace, torch.Tensor, Trie],
) -> None:
    args, _, trie = small
    with torch.no_grad():
        found = bench_decode.with_decoder(args, trie)["trie"]()
    assert (trie.find(found) >= 0).all() and found.shape == (3, 7, 4)


def test_random_codes_are_distinct() -> None:
    codes = bench_decode.draw_codes(5000, [256] * 4, seed=3)
    assert 4000 < len(codes) <= 5000 and len(codes.unique(dim=0)) == len(codes)
    assert torch.equal(codes, bench_decode.draw_codes(5000, [256] * 4, seed=3))


def test_interval_encloses_the_median() -> None:
    middle, low, high = bench_decode.interval([5.0, 1.0, 4.0, 2.0, 3.0])
    assert middle == 3 and low <= middle <= high
    assert bench_decode.interval([2.0]) == (2, 2, 2)


def test_a_run_writes_figures_and_a_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--items 500 --sizes 8,8 --batch_size 2 --beams 4 --pairs 3 --growth 1e2,1e3"
    monkeypatch.setattr(
        sys, "argv", ["bench_decode.py", *flags.split(), "--output_dir", str(tmp_path)]
    )
    bench_decode.main()
    told = json.loads((tmp_path / "bench_decode.json").read_text())
    assert [row["items"] for row in told["growth"]] == [100, 1000]
    assert {bar[1] for bar in told["bars"]} == {">= 20", "<= 1.3"}
    assert all(math.isfinite(bar[2]) for bar in told["bars"])
    assert (tmp_path / "growth.png").stat().st_size > 1000
    assert "median [95 %]" in capsys.readouterr().out.splitlines()[-1 - len(told["bars"])]
