# SPDX-License-Identifier: Apache-2.0
"""Every example config: valid, trained for two steps on synthetic rows, closed to mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from catalogues import publish_for
from config.mutations import check_mutations

from tzgen import build, train_eval
from tzgen.config import load_pipeline
from tzgen.data.batch import Source
from tzgen.features import create_features
from tzgen.features.synthesis import synthesise
from tzgen.protos.pipeline_pb2 import PipelineConfig

CONFIGS = sorted((Path(__file__).parent.parent / "examples" / "configs").glob("*.config"))


FITTED = {"sid_rqkmeans_beauty", "sid_rqkmeans_ml100k"}  # no losses: nothing is descended
# Sixteen synthetic rows are too few for 256 codes.
FEW_ITEMS = {
    name: (
        f"model_config.{model}.codebook=[4, 4, 4]",
        f"model_config.{model}.candidate_output_config.topk=4",
    )
    for name in ("sid_rqkmeans_beauty", "sid_rqvae_beauty", "sid_rqkmeans_ml100k")
    for model in (name.rpartition("_")[0],)
}


def named(path: Path) -> str:
    return path.stem


@pytest.fixture
def catalogue(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where paths of a generator's config lead somewhere."""
    if publish_for(path, tmp_path):
        monkeypatch.chdir(tmp_path)


def test_there_are_examples() -> None:
    assert {path.stem for path in CONFIGS} >= {
        "dlrm_hstu_ml100k",
        "dlrm_hstu_kuairand",
        "dlrm_hstu_mtgr_kuairand",
        "ultra_hstu_kuairand",
        "mmoe_kuairand",
        "ple_kuairand",
        "sid_rqkmeans_beauty",
        "sid_rqvae_beauty",
        "sid_rqkmeans_ml100k",
        "tiger_beauty",
        "genrec_hstu_beauty",
        "tiger_ml100k",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=named)
def test_is_valid(path: Path) -> None:
    assert build.validate(load_pipeline(path)) == []


@pytest.mark.usefixtures("catalogue")
@pytest.mark.parametrize("path", CONFIGS, ids=named)
def test_trains_two_steps_on_synthetic_rows(path: Path, tmp_path: Path) -> None:
    config = load_pipeline(path)
    features = create_features(config)
    for name, seed in (("train", 1), ("eval", 2)):
        pq.write_table(synthesise(config, features, 16, seed=seed), tmp_path / f"{name}.parquet")
    train_eval.main(
        [
            *("--pipeline_config", str(path), "--model_dir", str(tmp_path / "run")),
            *("--train_input_path", str(tmp_path / "train.parquet")),
            *("--eval_input_path", str(tmp_path / "eval.parquet")),
            *("--set", "train_config.num_epochs=", "--set", "train_config.num_steps=2"),
            *("--set", "train_config.early_stopping=", "--set", "data_config.num_workers=0"),
            *("--set", "data_config.batch_size=8", "--set", "train_config.embedding_engine=LOCAL"),
            *(word for text in FEW_ITEMS.get(path.stem, ()) for word in ("--set", text)),
        ]
    )
    manifest = json.loads((tmp_path / "run" / "model.ckpt-2" / "manifest.json").read_text())
    assert manifest["step"] == 2
    losses = [v for k, v in manifest["metrics"]["metrics"].items() if k.startswith("loss")]
    assert all(value is not None and value > 0 for value in losses)
    assert losses or path.stem in FITTED


@pytest.mark.usefixtures("catalogue")
@pytest.mark.parametrize("path", CONFIGS, ids=named)
def test_every_field_deleted_renamed_and_retyped(path: Path) -> None:
    """Each mutation is refused by name, or computes a loss without the field."""
    assert check_mutations(path.read_text(), computes_a_loss) > 40


def computes_a_loss(config: PipelineConfig) -> None:
    pipeline = build.build_pipeline(config, engine="local")
    (rows,) = synthesise(config, pipeline.features, 3).combine_chunks().to_batches()
    numbers = torch.arange(3)
    batch = pipeline.parse(rows, Source(("x.parquet",), torch.zeros(3, dtype=torch.int64), numbers))
    loss, _ = pipeline.module(batch)
    assert bool(torch.isfinite(loss))
    pipeline.eval_metrics(intervals=True)
