# SPDX-License-Identifier: Apache-2.0
"""Intervals against the binomial, interleaving, lengths, the table."""

from __future__ import annotations

import json
from math import comb
from pathlib import Path

import bench_measure as bench
import pytest
import torch


@pytest.mark.parametrize("count", [1, 5, 15, 16, 31])
def test_interval_encloses_the_median_with_95_percent(count: int) -> None:
    values = [float(v) for v in range(count)][::-1]
    found = bench.spread(values)
    assert found.middle == (count - 1) / 2
    rank = int(found.low)
    assert found.high == count - 1 - rank
    # chance that fewer than rank + 1 values lie on one side of the true median
    outside = 2 * sum(comb(count, k) for k in range(rank + 1)) / 2**count
    assert outside <= 0.05 or rank == 0
    wider = 2 * sum(comb(count, k) for k in range(rank + 2)) / 2**count
    assert wider > 0.05


def test_a_bar_is_met_by_the_lower_bound() -> None:
    assert bench.Spread(9.0, 4.25, 20.0).meets(5.0)
    assert not bench.Spread(9.0, 4.2, 20.0).meets(5.0)


def test_rounds_are_interleaved_and_ratios_are_taken_inside_them() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    found = bench.rounds(calls, 3, "cpu")
    assert order == ["a", "b"] * 5 and len(found["a"].wall) == 3
    mine, theirs = bench.Times([1.0, 2.0, 4.0], [1.0] * 3), bench.Times([2.0, 6.0, 4.0], [3.0] * 3)
    wall, processor = mine.against(theirs)
    assert (wall.middle, wall.low, wall.high) == (2.0, 1.0, 3.0) and processor.middle == 3.0


def test_lengths() -> None:
    uniform = bench.lengths_of("uniform", 500, 40)
    assert int(uniform.min()) == 10 and int(uniform.max()) == 40
    zipf = bench.lengths_of("zipf", 4000, 1000)
    assert int(zipf.min()) == 1 and int(zipf.max()) <= 1000
    # P(length) ~ 1 / length: every factor of ten takes a third
    shares = [((zipf >= 10**i) & (zipf < 10 ** (i + 1))).double().mean().item() for i in range(3)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)
    assert bench.lengths_of("full", 3, 7).tolist() == [7, 7, 7]


def test_floor_is_the_slower_of_arithmetic_and_memory() -> None:
    peak = bench.Peaks(flops=100.0, bytes=10.0)
    assert peak.floor(1000.0, 1.0) == 10.0 and peak.floor(1.0, 1000.0) == 100.0
    found = bench.peaks("cpu", torch.float32)
    assert found.flops > 1e8 and found.bytes > 1e7


def test_table_and_record(tmp_path: Path) -> None:
    shown = bench.table(("name", "ms"), [("long one", "1"), ("b", "22")])
    assert shown.splitlines() == ["name      ms", "long one   1", "b         22"]
    bench.save(tmp_path / "r.json", {"machine": bench.environment("cpu")})
    assert json.loads((tmp_path / "r.json").read_text())["machine"]["torch"] == torch.__version__
