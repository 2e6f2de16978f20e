# SPDX-License-Identifier: Apache-2.0
"""The example configs read what the tools write: every column is there, and the parser takes it."""

from __future__ import annotations

from pathlib import Path

import prepare_movielens
import pyarrow.parquet as pq
import pytest
import torch
from test_prepare_movielens import ratings, write_100k

from tzgen.config import load_pipeline
from tzgen.data.batch import Batch, Ragged, Source
from tzgen.features import FeatureParser, create_features

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "configs"


def parse(config_name: str, file: Path) -> Batch:
    """The first rows of what the tool wrote, as the config's features see them."""
    config = load_pipeline(CONFIGS / config_name)
    parser = FeatureParser(config, create_features(config))
    table = pq.read_table(file)
    missing = set(parser.input_columns) - set(table.column_names)
    assert not missing, f"{config_name} reads columns that the tool does not write"
    rows = table.select(parser.input_columns).combine_chunks().to_batches()[0].slice(0, 16)
    numbers = torch.arange(rows.num_rows)
    source = Source((str(file),), torch.zeros(rows.num_rows, dtype=torch.int32), numbers)
    return parser.parse(rows, source)


@pytest.mark.parametrize(
    "config_name",
    [
        "dlrm_hstu_kuairand.config",
        "dlrm_hstu_mtgr_kuairand.config",
        "ultra_hstu_kuairand.config",
        "mmoe_kuairand.config",
        "ple_kuairand.config",
    ],
)
def test_kuairand(config_name: str, prepared_kuairand: Path) -> None:
    batch = parse(config_name, prepared_kuairand / "train" / "part-0.parquet")
    label = batch.labels["cand__action"]
    assert isinstance(label, Ragged) and label.values.dtype == torch.int64
    candidates = len(label.values)
    assert candidates >= 16
    assert len(batch.ids["cand__video_id"].lengths) == candidates
    assert batch.dense["cand__video_stats"].values.shape == (candidates, 4)
    assert len(batch.ids["uih__video_id"].values) > 0
    assert batch.raw_ids["user_id"].shape == (16,)


def test_movielens(tmp_path: Path) -> None:
    source = write_100k(tmp_path / "raw", ratings())
    prepare_movielens.main(["--input", str(source), "--output", str(tmp_path / "rows")])
    batch = parse("dlrm_hstu_ml100k.config", tmp_path / "rows" / "train" / "part-0.parquet")
    candidates = len(batch.labels["cand__action"].values)
    assert batch.labels["cand__rating"].values.dtype == torch.float32
    assert len(batch.ids["cand__movie_id"].values) == candidates
    assert batch.ids["cand__genres"].lengths.tolist() == [2] * candidates
    assert batch.dense["uih__action"].values.dtype == torch.int64
