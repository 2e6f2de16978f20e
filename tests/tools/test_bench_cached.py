# SPDX-License-Identifier: Apache-2.0
"""The caching benchmark runs small, its ways agree, and its sums are right."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bench_cached
import peak_memory
import pytest
import torch

SMALL = ["--history", "30", "--candidates", "9", "--micro_batch", "4", "--append_history", "40"]
SMALL += ["--new_events", "3", "--width", "16", "--heads", "2", "--page_size", "8", "--pairs", "2"]
SMALL += ["--threads", "1", "--skip_memory"]


@pytest.mark.parametrize("extra", [[], ["--relative_bias", "--users", "2"], ["--preset", "PAPER"]])
def test_the_ways_compute_the_same(extra: list[str]) -> None:
    args = bench_cached.parser().parse_args([*SMALL, *extra])
    with torch.inference_mode():
        bench = bench_cached.Bench(args)
        used = bench.pages.used_pages
        gaps = bench.differences()
        assert set(gaps) == {"rerun", "cold", "warm", "warm_calls", "append"}
        assert max(gaps.values()) < 1e-5
        assert bench.pages.used_pages == used, "every way leaves the pages as they were"
        bench.candidates[:, -1] += 1
        before = bench.warm()
        assert bench.warm().equal(before)
        bench.pages._v[0].mul_(1.5)
        assert max(bench.differences().values()) > 1e-4, "a spoiled cache must show"


def test_it_writes_tables_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        bench_cached.main([*SMALL, "--output_dir", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "bench_cached.json").read_text())
    assert found["torch"] == torch.__version__ and found["options"]["history"] == 30
    assert [len(values) for values in found["seconds"].values()] == [2] * 7
    for claim in bench_cached.CLAIMS:
        assert claim.text in printed


def test_interval_is_the_binomial_one() -> None:
    # of 15 values the 4th and the 12th: outside lie 2 * (1 + 15 + 105 + 455) / 2^15 = 3.5 %
    assert bench_cached.interval([float(i) for i in range(1, 16)]) == (8.0, 4.0, 12.0)
    assert bench_cached.interval([5.0]) == (5.0, 5.0, 5.0)


def test_bars() -> None:
    seconds = {"rerun": [10.0] * 15, "cold": [2.2] * 15, "uncached": [2.0] * 15}
    at_least, at_most = bench_cached.CLAIMS[:2]
    assert bench_cached.judge(at_least, seconds)["met"]  # 4.5 is within 15 % of 5
    assert bench_cached.judge(at_most, seconds)["met"]
    slower = {**seconds, "cold": [2.8] * 15}
    assert not bench_cached.judge(at_least, slower)["met"]
    assert not bench_cached.judge(at_most, slower)["met"]


@pytest.mark.skipif(not peak_memory.measurable(), reason="needs Linux's /proc")
def test_peak_memory_is_that_of_one_way() -> None:
    shape = ["--history", "8192", "--width", "64"]
    command = [sys.executable, bench_cached.__file__, *SMALL, *shape, "--peak"]
    rows = 8192 * 64 * 5 * 4  # x and [u, v, q, k] in float32, against those of a few candidates
    assert peak_memory.told([*command, "uncached"]) > 0.8 * rows
    assert peak_memory.told([*command, "warm"]) < 0.2 * rows
