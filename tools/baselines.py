# SPDX-License-Identifier: Apache-2.0
"""What a model has to beat, on the very rows that it is trained on; and who is better, with doubt.

    python tools/baselines.py priors  --data data/kuairand --evaluate test --output priors.parquet
    python tools/baselines.py gbdt    --data data/kuairand --evaluate test --output gbdt.parquet
    python tools/baselines.py compare --data data/kuairand --split test priors.parquet gbdt.parquet

priors: per candidate the log-odds of all events so far, shifted by the smoothed rates of its item,
its user and its context (KuaiRand: the tab), each as of the request time. For a regression task the
means instead. How many pseudo-events smooth them is chosen on `valid`.

gbdt: gradient boosted trees (scikit-learn's histogram trees) per task, on the priors' terms and the
columns that the manifest calls features; the number of trees is chosen on `valid`, after which
--evaluate test fits again on `train` and `valid` together.

compare: metric of each prediction file and its difference to the best one, with 95 % intervals from
resampling users, the same users for all files. It reads the files written here and the output of
`tzgen.predict` with the key columns reserved; rows must be exactly those of the split.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from paired_bootstrap import auc, compare_files, mean_squared_error
from point_in_time import evidence, log_odds, sums_before
from prepared import Progress, label_of, read_candidates, read_manifest, run

from tzgen.errors import UserError

Floats = NDArray[np.float64]
SPLITS = ("train", "valid", "test")
STRENGTHS = {
    "item": (5.0, 10.0, 20.0, 50.0),
    "user": (2.0, 5.0, 10.0, 20.0),
    "context": (50.0,),
}
TREES = {"learning_rate": 0.05, "max_leaf_nodes": 31, "min_samples_leaf": 100}
MOST_TREES, TREE_STEP = 400, 20


def is_regression(task: dict[str, Any]) -> bool:
    return "bitmask" not in task


def better_is(task: dict[str, Any], label: Floats, score: Floats) -> float:
    """The figure that choices maximise."""
    if is_regression(task):
        return -mean_squared_error(label, score)
    return auc(label, score)


def metrics_of(task: dict[str, Any], label: Floats, score: Floats) -> dict[str, float]:
    """Under the names that evaluation gives them, less the task's."""
    if not is_regression(task):
        return {"auc": auc(label, score)}
    return {
        "mean_squared_error": mean_squared_error(label, score),
        "mean_absolute_error": float(np.abs(label - score).mean()),
    }


def shown(task: dict[str, Any], label: Floats, score: Floats) -> str:
    found = metrics_of(task, label, score)
    return "  ".join(f"{name} {value:.4f}" for name, value in found.items())


class Candidates:
    """All candidates of the splits in one table, `split` naming theirs.

    `time` is the event's own time and `request_time` that of its row, both in ms.
    """

    def __init__(self, data: Path) -> None:
        self.manifest = read_manifest(data)
        self.tasks: dict[str, dict[str, Any]] = self.manifest["tasks"]
        self.keys: list[str] = self.manifest["keys"]
        frames = [read_candidates(data, s).with_columns(split=pl.lit(s)) for s in SPLITS]
        self.table = pl.concat(frames).with_columns(
            time="cand__time_ms", request_time=pl.col("request_time") * 1000
        )

    def mask(self, *splits: str) -> NDArray[np.bool_]:
        return self.table["split"].is_in(splits).to_numpy()

    def label(self, task: str) -> Floats:
        return self.table.select(label_of(self.tasks[task])).to_series().to_numpy()

    def entities(self) -> dict[str, str]:
        """Role -> column of what priors are kept for."""
        found = {"item": self.manifest["item"], "user": "user_id"}
        if "context" in self.manifest:
            found["context"] = self.manifest["context"]
        return found


class Priors:
    """Sums before each request, by entity, for one task."""

    def __init__(self, data: Candidates, task: str) -> None:
        self.regression = is_regression(data.tasks[task])
        label = label_of(data.tasks[task])
        events = data.table.with_columns(hits=label, trials=pl.lit(1.0))
        values = ["hits", "trials"]
        every = sums_before(events, data.table, [], values)
        guess = (0.0, 0.0) if self.regression else (1.0, 4.0)  # before the first event
        hits, trials = every["hits"].to_numpy() + guess[0], every["trials"].to_numpy() + guess[1]
        self.base: Floats = hits / np.maximum(trials, 1.0)
        self.sums = {
            role: sums_before(events, data.table, [column], values)
            for role, column in data.entities().items()
        }

    def term(self, role: str, strength: float) -> Floats:
        hits, trials = (self.sums[role][name].to_numpy() for name in ("hits", "trials"))
        if self.regression:
            return (hits + strength * self.base) / (trials + strength) - self.base
        return evidence(hits, trials, self.base, strength)

    def score(self, strengths: dict[str, float]) -> Floats:
        start = self.base if self.regression else log_odds(self.base)
        return start + sum(self.term(role, value) for role, value in strengths.items())

    def choose(self, data: Candidates, task: str) -> dict[str, float]:
        """The strengths that do best on `valid`."""
        rows, label = data.mask("valid"), data.label(task)
        grids = [[(role, value) for value in STRENGTHS[role]] for role in self.sums]
        options = [dict(option) for option in itertools.product(*grids)]
        return max(
            options,
            key=lambda o: better_is(data.tasks[task], label[rows], self.score(o)[rows]),
        )


def run_priors(data: Candidates, split: str, progress: Progress) -> dict[str, Floats]:
    rows, scores = data.mask(split), {}
    for name, task in data.tasks.items():
        priors = Priors(data, name)
        strengths = priors.choose(data, name)
        scores[name] = priors.score(strengths)[rows]
        told = ", ".join(f"{role} {value:g}" for role, value in strengths.items())
        result = shown(task, data.label(name)[rows], scores[name])
        progress.say(f"priors {split} {name}: {result}  (pseudo-events: {told})")
    return scores


def feature_matrix(data: Candidates) -> tuple[NDArray[np.float32], list[str]]:
    """The manifest's features as numbers [candidates, columns]: lists of numbers side by side, of
    other lists the first element, words by their rank."""
    columns, names = [], []
    for series in data.table.select(data.manifest["features"]).iter_columns():
        parts = [series]
        if series.dtype == pl.List(pl.Float32):
            parts = [series.list.get(i) for i in range(series.list.len()[0])]
        elif isinstance(series.dtype, pl.List):
            parts = [series.list.first()]
        for index, part in enumerate(parts):
            number = part.rank("dense") if part.dtype == pl.String else part
            columns.append(number.cast(pl.Float32).to_numpy())
            names.append(series.name if len(parts) == 1 else f"{series.name}[{index}]")
    return np.stack(columns, axis=1), names


def run_gbdt(data: Candidates, split: str, progress: Progress) -> dict[str, Floats]:
    matrix, names = feature_matrix(data)
    progress.say(f"gbdt on {len(names)} columns")
    rows, valid, scores = data.mask(split), data.mask("valid"), {}
    for name, task in data.tasks.items():
        priors, label = Priors(data, name), data.label(name)
        terms = [priors.term(role, values[0]) for role, values in STRENGTHS.items()
                 if role in priors.sums]  # fmt: skip
        x = np.column_stack([matrix, *terms]).astype(np.float32)
        model = _trees(task, MOST_TREES).fit(x[data.mask("train")], label[data.mask("train")])
        stages = [
            (better_is(task, label[valid], stage), count, stage)
            for count, stage in enumerate(_staged(task, model, x[valid]), start=1)
            if count % TREE_STEP == 0
        ]
        _, count, scores[name] = max(stages, key=lambda stage: stage[0])
        if split == "test":
            fit = data.mask("train", "valid")
            model = _trees(task, count).fit(x[fit], label[fit])
            scores[name] = list(_staged(task, model, x[rows]))[-1]
        result = shown(task, label[rows], scores[name])
        progress.say(f"gbdt {split} {name}: {result}  ({count} trees)")
    return scores


def _trees(task: dict[str, Any], count: int) -> Any:
    from sklearn.ensemble import (  # imported late: the other commands do without
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
    )

    kind = HistGradientBoostingRegressor if is_regression(task) else HistGradientBoostingClassifier
    return kind(
        max_iter=count, l2_regularization=1.0, early_stopping=False, random_state=0, **TREES
    )


def _staged(task: dict[str, Any], model: Any, x: NDArray[np.float32]) -> Any:
    """Scores after each tree: values, or log-odds."""
    if is_regression(task):
        return model.staged_predict(x)
    return (stage.reshape(-1) for stage in model.staged_decision_function(x))


def save(path: Path, data: Candidates, split: str, scores: dict[str, Floats]) -> None:
    """Keys and per task `probs_<task>`, or `y_<task>` for a regression: tzgen.predict's names."""
    table = data.table.filter(pl.Series(data.mask(split))).select(data.keys)
    for name, score in scores.items():
        if is_regression(data.tasks[name]):
            table = table.with_columns(pl.Series(f"y_{name}", score))
        else:
            table = table.with_columns(pl.Series(f"probs_{name}", 1.0 / (1.0 + np.exp(-score))))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    table.write_parquet(partial)
    partial.rename(path)


def write_report(path: Path, data: Candidates, split: str, scores: dict[str, Floats]) -> None:
    """{"split": ..., "metrics": {"auc_is_like": ...}}, as evaluation names them."""
    rows, metrics = data.mask(split), dict[str, float]()
    for task, score in scores.items():
        found = metrics_of(data.tasks[task], data.label(task)[rows], score)
        metrics |= {f"{name}_{task}": value for name, value in found.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps({"split": split, "metrics": metrics}, indent=2) + "\n")
    partial.rename(path)


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = flags.add_subparsers(dest="verb", required=True)
    for name in ("priors", "gbdt"):
        verb = verbs.add_parser(name)
        verb.add_argument("--data", type=Path, required=True, help="folder of prepared rows")
        verb.add_argument("--evaluate", choices=("valid", "test"), default="valid")
        verb.add_argument("--output", type=Path, help="predictions, one row per candidate")
        verb.add_argument("--report", type=Path, help="metrics as JSON")
    verb = verbs.add_parser("compare")
    verb.add_argument("files", type=Path, nargs="+", help="prediction files or folders")
    verb.add_argument("--data", type=Path, required=True, help="folder of prepared rows")
    verb.add_argument("--split", choices=SPLITS, default="test")
    verb.add_argument("--samples", type=int, default=1000, help="bootstrap samples")
    verb.add_argument("--seed", type=int, default=42)
    return flags


def main(argv: Sequence[str] | None) -> None:
    args = parser().parse_args(argv)
    progress = Progress()
    if args.verb == "compare":
        for line in compare_files(
            args.files, args.data, args.split, samples=args.samples, seed=args.seed
        ):
            progress.say(line)
        return
    if args.output is not None and args.output.suffix != ".parquet":
        raise UserError(f"--output {args.output}: expected a name that ends in .parquet")
    data = Candidates(args.data)
    work = run_priors if args.verb == "priors" else run_gbdt
    scores = work(data, args.evaluate, progress)
    if args.output is not None:
        save(args.output, data, args.evaluate, scores)
        progress.say(f"wrote {args.output}")
    if args.report is not None:
        write_report(args.report, data, args.evaluate, scores)


if __name__ == "__main__":
    run(main)
