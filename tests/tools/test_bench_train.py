# SPDX-License-Identifier: Apache-2.0
"""The training benchmark's config and rows fit each other, and its sums are right."""

from __future__ import annotations

from pathlib import Path

import bench_train
import pyarrow.parquet as pq
import pytest
import torch

from tzgen.build import build_pipeline, open_loader
from tzgen.config import load_pipeline


def test_rows_fit_the_config(tmp_path: Path) -> None:
    tokens = bench_train.write_rows(tmp_path / "rows.parquet", 40, seed=1)
    table = pq.read_table(tmp_path / "rows.parquet")
    lengths = [len(cell) for cell in table["uih__video"].to_pylist()]
    assert all(50 <= length <= 200 for length in lengths)
    assert tokens == sum(lengths) + 40 * bench_train.CANDIDATES
    (tmp_path / "bench.config").write_text(bench_train.config_text())
    paths = [f'train_input_path="{tmp_path / "rows.parquet"}"', f'model_dir="{tmp_path / "m"}"']
    config = load_pipeline(tmp_path / "bench.config", paths)
    pipeline = build_pipeline(config, engine="local")
    loader = open_loader(pipeline, config.train_input_path, mode="train", num_workers=0)
    batch = next(iter(loader.epoch(None, 0)))
    with torch.no_grad():
        loss, output = pipeline.module(batch)
    assert batch.num_rows == 32 and bool(loss.isfinite())
    assert set(output.outputs.logits) == {"is_click", "is_like", "seconds"}


def test_spans_and_what_lies_inside_others() -> None:
    assert bench_train.spans([1.0, 3.0, 10.0, 10.5]) == [2.0, 0.5]
    inside = bench_train.nested_seconds([2.0, 3.0, 6.0, 7.0], [1.0, 4.0, 8.0, 9.0])
    assert inside == pytest.approx(1.0)


def test_calls_are_timed_even_when_they_fail() -> None:
    seconds: dict[str, list[float]] = {}

    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError, match="^$"):
        bench_train.timed(seconds, "part", fail)()
    assert bench_train.timed(seconds, "part", lambda x: x + 1)(1) == 2
    assert len(seconds["part"]) == 4 and seconds["part"] == sorted(seconds["part"])
