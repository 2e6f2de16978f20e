# SPDX-License-Identifier: Apache-2.0
"""The report of the generative quickstart: the best checkpoint, metrics side by side, titles."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import quickstart_generative as quickstart

from tzgen.config import load_pipeline


def test_the_best_checkpoint_is_the_runs_own(tmp_path: Path) -> None:
    for step, best in ((9, None), (100, {"step": 9}), (20, {"step": 20})):
        folder = tmp_path / f"model.ckpt-{step}"
        folder.mkdir()
        (folder / "trainer.json").write_text(json.dumps({"best": best}))
    assert quickstart.best_checkpoint(tmp_path).name == "model.ckpt-9"


def test_titles_of_histories_targets_and_lists(tmp_path: Path) -> None:
    for name, columns in {
        "items": {"item_id": [1, 2, 3], "title": ["Alien", "Brazil", "Casablanca"]},
        "test": {"user_id": [7, 8], "uih__item_id": [[2], [1, 2]], "target_item_id": [3, 3]},
        "out": {
            "user_id": [7, 8],
            "item_ids": [[3, 1], [1, 2]],
            "scores": [[-1.0, -2.0], [-1.5, -3.0]],
            "sids": [[[0, 4], [1, 1]], [[1, 1], [2, 2]]],
        },
    }.items():
        (tmp_path / name).mkdir()
        pq.write_table(pa.table(columns), tmp_path / name / "part-0.parquet")
    lines = "\n".join(quickstart.lists(tmp_path, tmp_path / "out", users=2))
    assert "user 7 watched   Brazil\n  and then          Casablanca" in lines
    assert "user 8 watched   Alien | Brazil" in lines
    assert lines.count("<-- it was") == 1 and "-1.00  0-4  <-- it was" in lines


def test_metrics_stand_beside_those_of_the_baselines() -> None:
    metrics = dict.fromkeys(quickstart.SHOWN, 0.1) | {"coverage@10": 0.5, "invalid_rate": 0.2}
    means = {name: {"mean": 0.05} for name in quickstart.SHOWN}
    told = quickstart.table(
        {"metrics": metrics, "intervals": {"recall@5": [0.08, 0.12]}},
        {"methods": {"popularity": means, "itemknn": means}},
    )
    assert "popularity" in told[1] and "itemknn" in told[1]
    assert told[3].split() == ["recall@5", "0.1000", "0.080", "to", "0.120", "0.0500", "0.0500"]
    assert told[-1] == "coverage@10 0.5000, invalid_rate 0.2000"


def test_its_paths_are_those_of_the_configs() -> None:
    root = quickstart.ROOT
    config = load_pipeline(root / quickstart.CONFIG)
    tokenizer = load_pipeline(root / quickstart.TOKENIZER)
    assert config.model_dir == quickstart.MODEL_DIR
    bundle = f"{quickstart.DATA}/sids/{quickstart.GENERATION}"
    assert config.model_config.tiger.bundle_path == bundle
    assert config.train_input_path.startswith(quickstart.DATA)
    assert tokenizer.train_input_path == f"{quickstart.DATA}/vectors/*.parquet"
