# SPDX-License-Identifier: Apache-2.0
"""The data benchmark runs and measures what it says; its numbers are not judged here."""

from __future__ import annotations

import sys

import bench_data
import numpy as np
import pyarrow as pa
import pytest


def test_it_prints_ratios_and_where_the_time_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_data.py", "--rows", "300", "--pairs", "2"])
    cpus = pa.cpu_count()
    try:
        bench_data.main()
    finally:
        pa.set_cpu_count(cpus)
    out = capsys.readouterr().out
    assert "300 synthesised rows" in out
    for line in ("pyarrow decoding alone", "Parquet -> Batch, shuffled", "arrange in batch order"):
        assert line in out
    assert "sequence ids (HashBuckets)" in out


def test_lengthened_columns_of_one_sequence_stay_equally_long() -> None:
    table = pa.table(
        {
            "user": [1, 2, 3],
            "a": [[1], [], [2, 3]],
            "b": [[4], [], [5, 6]],
            "candidate": [[1], [2], [3]],
        }
    )
    longer = bench_data.lengthen(table, np.random.default_rng(0))
    a, b, candidate = (
        longer[name].combine_chunks().value_lengths() for name in ("a", "b", "candidate")
    )
    assert a.equals(b)
    assert all(5 <= n <= 15 for n in candidate.to_pylist())
    assert set(longer["b"].combine_chunks().flatten().to_pylist()) <= {4, 5, 6}


def test_the_interval_of_a_median() -> None:
    values = list(range(101))
    low, high = bench_data.interval(values)
    assert (low, high) == (40, 60)
    assert bench_data.interval([3.0]) == (3.0, 3.0)
