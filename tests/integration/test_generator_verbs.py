# SPDX-License-Identifier: Apache-2.0
"""Generators by the verbs: train on sequences with a pattern, evaluate, predict, refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from world import run

from tzgen.sid.bundle import write_bundle
from tzgen.sid.collisions import resolve
from tzgen.sid.space import SidSpace
from tzgen.sid.table import make_table, resolved_table

ITEMS = 24
CONFIG = """
train_input_path: "train.parquet"
eval_input_path: "eval.parquet"
model_dir: "model"
train_config { seed: 1 num_epochs: %d dense_optimizer { adam_optimizer { lr: 0.01 }
  constant_learning_rate {} } }
eval_config { bootstrap_samples: 20 }
data_config {
  dataset_type: ParquetDataset batch_size: 16 num_workers: 0 shuffle: true %s
}
feature_configs { sequence_feature { sequence_name: "uih" sequence_length: 12
  features { raw_feature { feature_name: "item_id" } } } }
feature_configs { sequence_feature { sequence_name: "target" sequence_length: 1
  features { raw_feature { feature_name: "item_id" } } } }
model_config {
  feature_groups { group_name: "uih" feature_names: "uih__item_id" group_type: JAGGED_SEQUENCE }
  feature_groups {
    group_name: "target" feature_names: "target__item_id" group_type: JAGGED_SEQUENCE
  }
  %s
}
"""
WINDOW = 'sliding_window { history: "uih__item_id" target: "target__item_id" max_items: 6 }'
SEARCH = "beam_search { beams: 24 num_results: 10 } measure_invalid: true"
LAYERS = "d_model: 24 num_heads: 2 d_kv: 12 d_ff: 48 num_layers: 1"
MODELS = {
    "tiger": (8, WINDOW, f"tiger {{ bundle_path: '%s' transformer {{ {LAYERS} }} {SEARCH} }}"),
    "transformer": (
        16, "", f"genrec {{ bundle_path: '%s' transformer {{ {LAYERS} }} {SEARCH} }}"
    ),
    "hstu": (
        16,
        "",
        "genrec { bundle_path: '%s' hstu_layers: 2 hstu { embedding_dim: 24 num_heads: 2 "
        f"hidden_dim: 12 attention_dim: 12 preset: PAPER output_dropout_ratio: 0 }} {SEARCH} }}",
    ),
}  # fmt: skip


def publish(root: Path, generation: str = "one", *, seed: int = 0) -> Path:
    codes = np.random.default_rng(seed).integers(0, 4, (ITEMS, 2))
    table = make_table(pa.array(range(1000, 1000 + ITEMS)), codes, SidSpace((4, 4)))
    found = resolve(table.codes, table.space, "suffix", suffix_size=8)
    made = resolved_table(table, found)
    notes = {"input_hash": "x"}
    return write_bundle(root, generation, made, policy="suffix", capacity=1, notes=notes).path


def write_rows(folder: Path) -> None:
    """Users who step through the catalogue by 1, from anywhere: the next item is the successor."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 120), ("eval", 40)):
        starts, lengths = rng.integers(0, ITEMS, count), rng.integers(0, 9, count)
        history = [
            (1000 + (start + np.arange(length)) % ITEMS).tolist()
            for start, length in zip(starts, lengths, strict=True)
        ]
        last = [
            [1000 + int(start + length) % ITEMS]
            for start, length in zip(starts, lengths, strict=True)
        ]
        columns = {"uih__item_id": history, "target__item_id": last, "user_id": range(count)}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=50)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_rows(tmp_path)
    publish(tmp_path / "sids")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path, name: str, bundle: str = "sids/one") -> list[str]:
    epochs, window, model = MODELS[name]
    path = folder / f"{name}.config"
    path.write_text(CONFIG % (epochs, window, model % bundle))
    return ["--pipeline_config", str(path)]


@pytest.mark.parametrize("name", list(MODELS))
def test_trains_evaluates_and_predicts(folder: Path, name: str) -> None:
    words = written(folder, name)
    done = run("train_eval", words)
    assert done.status == 0, done.err
    done = run("eval", [*words, "--eval_result_filename", "again.json"])
    assert done.status == 0, done.err
    result = json.loads((folder / "model" / "again.json").read_text())
    metrics = result["metrics"]
    assert metrics["recall@5"] > 0.5  # a popularity list has 5 / 24
    assert metrics["loss_code_cross_entropy"] < 1.2
    assert metrics["unknown_target"] == 0 and metrics["hit_rate@10"] == metrics["recall@10"]
    assert 0 <= metrics["invalid_rate"] < 1
    low, high = result["intervals"]["recall@5"]
    assert low <= metrics["recall@5"] <= high
    requests = pq.read_table("eval.parquet").select(["uih__item_id", "user_id"])
    pq.write_table(requests, "requests.parquet")
    done = run(
        "predict",
        [*words, "--predict_input_path", "requests.parquet", "--predict_output_path", "out",
         "--reserved_columns", "user_id"],
    )  # fmt: skip
    assert done.status == 0, done.err
    rows = pq.read_table("out").to_pylist()
    assert [row["user_id"] for row in rows] == list(range(40))
    wanted = [row["target__item_id"][0] for row in pq.read_table("eval.parquet").to_pylist()]
    hits = [target in row["item_ids"][:5] for row, target in zip(rows, wanted, strict=True)]
    assert sum(hits) / 40 == pytest.approx(metrics["recall@5"])
    assert all(len(row["sids"]) == 10 and len(row["sids"][0]) == 3 for row in rows)
    assert all(row["scores"] == sorted(row["scores"], reverse=True) for row in rows)


@pytest.mark.parametrize("name", ["tiger", "hstu"])
def test_a_package_predicts_what_the_checkpoint_does_wherever_it_lies(
    folder: Path, name: str
) -> None:
    words = [*written(folder, name), "--set", "train_config.num_epochs=1"]
    assert run("train_eval", words).status == 0
    given = ["--predict_input_path", "eval.parquet", "--predict_output_path"]
    assert run("predict", [*words, *given, "out"]).status == 0
    run("export", [*words, "--export_dir", "no", "--set", "export_config.format=AOTI"]).fails(
        "export_config.format AOTI", "trie"
    )
    done = run("export", [*words, "--export_dir", "package"])
    assert done.status == 0, done.err
    assert "AUTO: EAGER" in done.err
    (folder / "package").rename(folder / "elsewhere")
    (folder / "sids").rename(folder / "gone")
    done = run("predict", ["--export_dir", "elsewhere", *given, "packaged"])
    assert done.status == 0, done.err
    packaged, wanted = (pq.read_table(out).to_pydict() for out in ("packaged", "out"))
    assert packaged == wanted


def test_a_package_may_be_given_its_generation_and_no_other(folder: Path) -> None:
    words = [*written(folder, "tiger"), "--set", "train_config.num_epochs=1"]
    assert run("train_eval", words).status == 0
    assert run("export", [*words, "--export_dir", "package"]).status == 0
    publish(folder / "sids", "other", seed=5)
    given = ["--predict_input_path", "eval.parquet", "--predict_output_path", "out"]
    field = "model_config.tiger.bundle_path"
    for bundle, status in (("sids/one", 0), ("sids/other", 2)):
        more = ["--set", f"{field}={bundle}", "--overwrite"]
        done = run("predict", ["--export_dir", "package", *given, *more])
        assert done.status == status, done.err


def test_another_bundle_is_refused_before_anything_is_written(folder: Path) -> None:
    words = [*written(folder, "tiger"), "--set", "train_config.num_epochs=1"]
    assert run("train_eval", words).status == 0
    publish(folder / "sids", "other", seed=5)
    other = [*written(folder, "tiger", "sids/other"), "--set", "train_config.num_epochs=1"]
    done = run(
        "predict",
        [*other, "--predict_input_path", "eval.parquet", "--predict_output_path", "out"],
    )
    done.fails("the model was made with the semantic IDs", "sids/other")


def test_what_cannot_work_is_refused_by_name(folder: Path) -> None:
    words = written(folder, "tiger")
    for more, told in (
        (["--set", "model_config.tiger.bundle_path="], ["bundle_path"]),
        (["--set", "model_config.tiger.bundle_path=sids"], ["generations one"]),
        (["--set", "data_config.sliding_window.max_items=0"], ["sliding_window.max_items"]),
        (["--set", "train_config.gradient_accumulation_steps=2"], ["gradient_accumulation_steps"]),
    ):
        run("train_eval", [*words, *more]).fails(*told)
