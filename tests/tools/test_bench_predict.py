# SPDX-License-Identifier: Apache-2.0
"""The tool runs, compares before it times, and leaves out what is too large."""

from __future__ import annotations

import json

import bench_predict
import pytest


def test_small_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    shape = "--rows 2 3 --history 6 --candidates 4 --dim 8 --heads 2 --rounds 2 --chunks 3"
    bench_predict.main([*shape.split(), "--tokens", "25"])
    head, *rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "torch" in head
    assert [row["rows"] for row in rows] == [2]
    assert set(rows[0]["ratio"]) == {"3", "8"} == set(rows[0]["memory"])
    assert all(value > 0 for value in rows[0]["ratio"].values())
