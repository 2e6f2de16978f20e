# SPDX-License-Identifier: Apache-2.0
"""Rows come from the data or are made up; both inputs are refused at once."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from checking.worlds import HSTU, TOWER, hstu_rows, tower_rows, world
from tzgen.build import Pipeline, build_pipeline
from tzgen.checking import rows as module
from tzgen.checking.rows import MOST_SYNTHESISED, affordable, first_batch, opened
from tzgen.errors import UserError


def pipeline_of(folder: Path, text: str, rows) -> Pipeline:  # type: ignore[no-untyped-def]
    return build_pipeline(world(folder, text, rows)[0], engine="local")


def test_the_first_rows_of_the_file_in_order(tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path, TOWER, tower_rows())
    pipeline.config.data_config.shuffle = True
    with opened(pipeline, synthetic=False) as rows:
        assert not rows.synthetic and rows.batch_size == 4
        batch = first_batch(pipeline, rows, 3)
    assert batch.ids["user"].values.tolist() == [0, 8, 3]
    ((name, told),) = rows.told
    assert name == "train_input_path"
    assert told == "4 rows in 1 file(s): 1 steps of 4 rows an epoch on one device"


def test_steps_count_micro_batches_and_cost_batches_have_none(tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path, TOWER, tower_rows())
    pipeline.config.data_config.batch_size = 1
    pipeline.config.train_config.gradient_accumulation_steps = 3
    with opened(pipeline, synthetic=False) as rows:
        assert "2 steps of 3 rows" in rows.told[0][1]
    pipeline.config.data_config.batch_cost_size = 10
    pipeline.config.data_config.sample_cost_field = "y"
    with opened(pipeline, synthetic=False) as rows:
        assert "batches are cut by y" in rows.told[0][1]


def test_synthesised_rows_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    pipeline = pipeline_of(tmp_path, HSTU, hstu_rows())
    with opened(pipeline, synthetic=True) as rows:
        assert rows.synthetic and rows.told[0][1].startswith("4 synthesised rows")
        assert len(list(scratch.iterdir())) == 1
        assert first_batch(pipeline, rows, rows.batch_size).num_rows == 4
    assert list(scratch.iterdir()) == []


def test_synthetic_does_not_look_at_the_data(tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path, HSTU, hstu_rows())
    pipeline.config.train_input_path = "nowhere/*.parquet"
    pipeline.config.data_config.batch_size = 100_000
    with opened(pipeline, synthetic=True) as rows:
        assert rows.batch_size == MOST_SYNTHESISED


def test_both_inputs_are_refused_at_once(tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path, TOWER, tower_rows())
    pipeline.config.train_input_path = str(tmp_path / "no.parquet")
    pipeline.config.eval_input_path = str(tmp_path / "none.parquet")
    with pytest.raises(UserError) as caught, opened(pipeline, synthetic=False):
        pass
    told = str(caught.value).split("\n")
    assert told[0].startswith("train_input_path: ") and "no.parquet" in told[0]
    assert told[1].startswith("eval_input_path: ") and "none.parquet" in told[1]
    assert "--synthetic" in told[2]


def test_a_column_that_only_evaluation_lacks(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    pipeline = pipeline_of(tmp_path, TOWER, tower_rows())
    pq.write_table(tower_rows().drop_columns(["age"]), tmp_path / "eval.parquet")
    pipeline.config.eval_input_path = str(tmp_path / "eval.parquet")
    with pytest.raises(UserError, match=r"eval_input_path: .*eval\.parquet.*'age'"):
        opened(pipeline, synthetic=False).__enter__()


def test_long_sequences_send_fewer_rows_through_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_of(tmp_path, HSTU, hstu_rows())
    with opened(pipeline, synthetic=False) as rows:
        batch = first_batch(pipeline, rows, 4)
    assert affordable(batch) == 4  # 3 + 6 + 0 + 1 events
    for budget, expected in ((10, 4), (9, 3), (5, 2), (1, 1)):
        monkeypatch.setattr(module, "TOKEN_BUDGET", budget)
        assert affordable(batch) == expected
    assert torch.equal(batch.ids["user"].values, torch.tensor([3, 8, 0, 5]))
