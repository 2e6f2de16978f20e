# SPDX-License-Identifier: Apache-2.0
"""What the verbs export and predict make of their flags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from export.export_world import config_of, pipeline_of

from tzgen.errors import UserError
from tzgen.export import jobs
from tzgen.features import create_features
from tzgen.features.synthesis import synthesise
from tzgen.train.environment import Env

ENV = Env(0, 1, 0, torch.device("cpu"))
CPU = torch.device("cpu")


def trained(config: Any, path: str | None, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Stands for trained_pipeline: random weights, and which options it was asked for."""
    asked = {k: v for k, v in options.items() if k in ("best", "averaged")}
    reserved = options.get("reserved_columns", ())
    pipeline = pipeline_of(config) if not reserved else _with_columns(config, reserved)
    return pipeline, {"checkpoint": path, "asked": {k: str(v) for k, v in asked.items()}}


def _with_columns(config: Any, reserved: Any) -> Any:
    from tzgen.build import build_pipeline

    return build_pipeline(config, engine="local", labels=False, reserved_columns=reserved)


def flags(**given: Any) -> argparse.Namespace:
    names = ("export_dir", "checkpoint_path", "predict_input_path", "predict_output_path")
    names = (*names, "reserved_columns", "output_columns", "predict_steps", "writer_type")
    return argparse.Namespace(**{**dict.fromkeys(names), "overwrite": False, "set": [], **given})


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    config = config_of()
    pq.write_table(synthesise(config, create_features(config), 12, seed=3), tmp_path / "r.parquet")
    return tmp_path / "r.parquet"


def test_export_then_predict(tmp_path: Path, rows: Path) -> None:
    config = config_of("dlrm_hstu", "train_config.mixed_precision=BF16")
    config.eval_input_path = str(rows)
    path = jobs.export_job(flags(export_dir=str(tmp_path / "p")), config, trained)
    given = {"export_dir": str(path), "predict_input_path": str(rows)}
    args = flags(**given, predict_output_path=str(tmp_path / "out"), reserved_columns="member")
    jobs.package_job(args, [], CPU).run(ENV)
    table = pq.read_table(sorted((tmp_path / "out").glob("*.parquet")))
    assert table.num_rows == 12 and table.column_names[0] == "member"
    assert config.train_config.mixed_precision == "", "a package never inherits training's"


def test_which_weights_are_exported(tmp_path: Path, rows: Path, monkeypatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(
        jobs, "export_package", lambda *args, provenance, **_: told.append(provenance["asked"])
    )
    for sets in ((), ("export_config.exporter_type=best", "export_config.use_dense_ema=false")):
        config = config_of("dlrm_hstu", *sets)
        config.eval_input_path = str(rows)
        jobs.export_job(flags(export_dir=str(tmp_path / "p")), config, trained)
    assert told == [{"best": "False", "averaged": "None"}, {"best": "True", "averaged": "False"}]


def test_one_row_is_too_few_to_export(tmp_path: Path, rows: Path) -> None:
    pq.write_table(pq.read_table(rows).slice(0, 1), tmp_path / "one.parquet")
    config = config_of()
    config.eval_input_path = str(tmp_path / "one.parquet")
    with pytest.raises(UserError, match=r"one\.parquet.*two rows"):
        jobs.export_job(flags(export_dir=str(tmp_path / "p")), config, trained)


def test_from_a_checkpoint_with_all_columns(tmp_path: Path, rows: Path) -> None:
    args = flags(
        predict_input_path=str(rows),
        predict_output_path=str(tmp_path / "out"),
        reserved_columns="ALL_COLUMNS",
        output_columns=" probs_click , ",
    )
    jobs.checkpoint_job(args, config_of(), trained, CPU).run(ENV)
    table = pq.read_table(sorted((tmp_path / "out").glob("*.parquet")))
    assert table.column_names == [*pq.read_schema(rows).names, "probs_click"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"export_dir": None}, "--export_dir"),
        ({"export_dir": "somewhere"}, "nothing to read|eval_input_path|train_input_path"),
    ],
)
def test_missing_flags_are_named(given: dict[str, Any], told: str) -> None:
    config = config_of()
    config.eval_input_path = config.train_input_path = ""
    with pytest.raises(UserError, match=told):
        jobs.export_job(flags(**given), config, trained)


def test_neither_package_nor_config() -> None:
    with pytest.raises(UserError, match=r"--export_dir.*--pipeline_config"):
        jobs.checkpoint_job(flags(), None, trained, CPU)
    with pytest.raises(UserError, match="--predict_input_path"):
        jobs.checkpoint_job(flags(), config_of(), trained, CPU)


def test_writers_follow_the_reader() -> None:
    csv = config_of("mmoe", "data_config.dataset_type=CsvDataset").data_config
    assert jobs._writer_of(csv) == "CsvWriter"
    assert jobs._writer_of(config_of().data_config) == "ParquetWriter"
