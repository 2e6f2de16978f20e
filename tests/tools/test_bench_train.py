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

    with pytest.raises(ValueError, match=r"^$"):
        bench_train.timed(seconds, "part", fail)()
    assert bench_train.timed(seconds, "part", lambda x: x + 1)(1) == 2
    for name in ("part", bench_train.CPU + "part"):
        assert len(seconds[name]) == 4 and seconds[name] == sorted(seconds[name])


def test_the_parts_of_a_run_add_up() -> None:
    stamps = {
        "imported": [10.0],
        "pipeline": [10.0, 12.0],
        "__init__": [12.0, 12.5],
        "_step": [13.0, 15.0, 15.0, 16.0, 16.0, 17.0, 17.0, 17.5],
        "_evaluate": [18.0, 20.0],
        "_save": [19.0, 19.5, 20.0, 20.25],
        "plot": [21.0, 21.5],
        "done": [22.0],
    }
    parts = bench_train.parts_of(stamps, "", began=7.0, total=16.0)
    assert parts.pop("it/s") == 1.0 and parts.pop("total") == 16.0
    assert parts["the other 2 steps"] == 2.0 and parts["first step"] == 2.0
    assert parts["evaluation"] == 1.5 and parts["checkpoints"] == 0.75
    assert parts["loader process, process exit"] == 1.0
    assert sum(parts.values()) == pytest.approx(16.0)
