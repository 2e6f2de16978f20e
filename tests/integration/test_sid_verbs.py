# SPDX-License-Identifier: Apache-2.0
"""`python -m tzgen.sid` end to end: text, vectors, tokenizer, generation, append, report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalogues import WORDS
from world import run as run_verb

import tzgen.sid.__main__ as sid
from tzgen.sid.bundle import open_bundle

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
train_config { dense_optimizer { adam_optimizer { lr: 0.003 } } num_epochs: 2 }
data_config { batch_size: 32 dataset_type: ParquetDataset num_workers: 1 }
feature_configs {
  raw_feature { feature_name: "item_emb" expression: "item:item_emb" value_dim: 8 }
}
model_config {
  feature_groups { group_name: "deep" feature_names: "item_emb" group_type: DEEP }
  %s
}
"""
KMEANS = """sid_rqkmeans {
  codebook: [6, 6] faiss_kmeans_kwargs { niter: 5 }
  candidate_output_config { enabled: true topk: 6 }
}"""
RQVAE = """sid_rqvae { embed_dim: 4 hidden_dims: 8 codebook: [6, 6] kmeans_init: true }
losses { recon_loss {} } losses { commitment_loss {} }"""
RESTARTED = """sid_rqvae {
  embed_dim: 4 hidden_dims: 8 codebook: [6, 6] kmeans_init: true
  ema {} dead_code_restart { interval: 1 threshold: 0.9 decay: 0.1 }
}
losses { recon_loss {} } losses { commitment_loss {} } losses { contrastive_recon_loss {} }"""
OPQ = "sid_opq { num_subvectors: 2 codebook_size: 6 rounds: 2 }"


def write_items(path: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    titles = [" ".join(rng.choice(WORDS, 5)) for _ in range(100)][:count]
    pq.write_table(
        pa.table({"item_id": range(count), "title": titles, "text": titles}),
        path,
        row_group_size=16,
    )
    return path


def verb(name: str, **flags: Any) -> None:
    sid.main([name, *(word for key, value in flags.items() for word in (f"--{key}", str(value)))])


@pytest.mark.parametrize("model", [KMEANS, RQVAE], ids=["rqkmeans", "rqvae"])
def test_text_to_published_ids(tmp_path: Path, model: str) -> None:
    config = tmp_path / "c.config"
    config.write_text(CONFIG % model)
    first_items = write_items(tmp_path / "first.parquet", 60)
    everything = write_items(tmp_path / "items.parquet", 70)
    verb("embed", item_input_path=first_items, output=tmp_path / "vec", dim=8)
    verb(
        "embed", item_input_path=everything, output=tmp_path / "vec2", dim=8,
        encoder_path=tmp_path / "vec-encoder",
    )  # fmt: skip
    policy = "next_best" if model == KMEANS else "suffix"
    flags = {
        "pipeline_config": config, "model_dir": tmp_path / "model", "policy": policy,
        "train_input_path": tmp_path / "vec", "bundle_path": tmp_path / "sids",
        "suffix_size": 30,
    }  # fmt: skip
    verb("fit", generation="one", **flags)
    first = open_bundle(tmp_path / "sids" / "one")
    assert len(first.table) == 60 and first.manifest["checkpoint"].startswith("model.ckpt-")
    done = run_verb(
        "predict",
        ["--pipeline_config", str(config), "--set", f"model_dir={tmp_path / 'model'}",
         "--predict_input_path", str(tmp_path / "vec2"), "--reserved_columns", "item_id",
         "--predict_output_path", str(tmp_path / "codes2"), "--set", "train_input_path=x"],
    )  # fmt: skip
    assert done.status == 0, done.err
    verb(
        "bundle", codes_path=tmp_path / "codes2", bundle_path=tmp_path / "sids", generation="two",
        from_generation="one",
    )  # fmt: skip
    second = open_bundle(tmp_path / "sids" / "two")
    assert len(second.table) == 70
    assert np.array_equal(second.table.codes[:60], first.table.codes)
    verb(
        "report", bundle_path=tmp_path / "sids", generation="two", item_input_path=tmp_path / "vec2"
    )
    text = (tmp_path / "sids" / "two-report" / "report.md").read_text()
    assert "neighbours with this prefix" in text and "nail" in text


@pytest.mark.parametrize("model", [RQVAE, OPQ], ids=["rqvae", "opq"])
def test_the_package_of_a_tokenizer_predicts_the_same_codes(tmp_path: Path, model: str) -> None:
    config = tmp_path / "c.config"
    config.write_text(CONFIG % model)
    items = write_items(tmp_path / "items.parquet", 60)
    verb("embed", item_input_path=items, output=tmp_path / "vec", dim=8)
    common = ["--pipeline_config", str(config), "--set", f"model_dir={tmp_path / 'model'}"]
    paths = ["--set", f"train_input_path={tmp_path / 'vec'}"]
    assert run_verb("train_eval", [*common, *paths]).status == 0
    exported = run_verb(
        "export",
        [*common, *paths, "--export_dir", str(tmp_path / "package"), "--set",
         "export_config.format=EAGER"],
    )  # fmt: skip
    assert exported.status == 0, exported.err
    rows = ["--predict_input_path", str(tmp_path / "vec"), "--reserved_columns", "item_id"]
    for name, source in (
        ("a", [*common, *paths]),
        ("b", ["--export_dir", str(tmp_path / "package")]),
    ):
        done = run_verb("predict", [*source, *rows, "--predict_output_path", str(tmp_path / name)])
        assert done.status == 0, done.err
    assert pq.read_table(tmp_path / "a").equals(pq.read_table(tmp_path / "b"))


def test_fine_tuning_starts_from_the_codebooks_of_the_other_run(tmp_path: Path) -> None:
    """Neither kmeans_init nor moving averages put initial weights in their place; the rate is 0."""
    config = tmp_path / "c.config"
    config.write_text(CONFIG % RQVAE)
    items = write_items(tmp_path / "items.parquet", 60)
    verb("embed", item_input_path=items, output=tmp_path / "vec", dim=8)
    common = ["--pipeline_config", str(config), "--set", f"train_input_path={tmp_path / 'vec'}"]
    first = [*common, "--model_dir", str(tmp_path / "model")]
    still = [
        *common, "--model_dir", str(tmp_path / "tuned"),
        "--set", f"train_config.fine_tune_checkpoint={tmp_path / 'model'}",
        "--set", "train_config.dense_optimizer.adam_optimizer.lr=0",
        "--set", "train_config.dense_optimizer.ema.decay=0.9",
    ]  # fmt: skip
    rows = ["--predict_input_path", str(tmp_path / "vec"), "--reserved_columns", "item_id"]
    for name, flags in (("a", first), ("b", still)):
        assert run_verb("train_eval", flags).status == 0
        done = run_verb("predict", [*flags, *rows, "--predict_output_path", str(tmp_path / name)])
        assert done.status == 0, done.err
    assert pq.read_table(tmp_path / "a").equals(pq.read_table(tmp_path / "b"))


@pytest.mark.slow
@pytest.mark.parametrize("model", [KMEANS, RESTARTED], ids=["rqkmeans", "rqvae"])
def test_two_processes_fit_and_publish_one_generation(tmp_path: Path, model: str) -> None:
    """Every collective of a fit: a start by k-means, moving codebooks, restarts, contrasts."""
    config = tmp_path / "c.config"
    config.write_text(CONFIG % model)
    items = write_items(tmp_path / "items.parquet", 60)
    verb("embed", item_input_path=items, output=tmp_path / "vec", dim=8)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words = [
        "-m", "tzgen.sid", "fit", "--pipeline_config", str(config),
        "--model_dir", str(tmp_path / "model"), "--train_input_path", str(tmp_path / "vec"),
        "--set", f"eval_input_path={tmp_path / 'vec'}", "--bundle_path", str(tmp_path / "sids"),
        "--generation", "one",
    ]  # fmt: skip
    done = subprocess.run(
        [*launch, *words], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(open_bundle(tmp_path / "sids" / "one").table) == 60


def test_wrong_words_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, text in (
        ([], "the following arguments are required: verb"),
        (["fits"], "invalid choice: 'fits'"),
        (["embed", "--texts", "x"], "unknown flag --texts"),
        (["embed"], "--item_input_path is needed"),
        (["report", "--bundle_path", str(tmp_path)], "--generation is needed"),
    ):
        with pytest.raises(SystemExit) as end:
            sid.main(words)
        assert end.value.code == 2
        assert text in capsys.readouterr().err
