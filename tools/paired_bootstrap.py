# SPDX-License-Identifier: Apache-2.0
"""Which of several predictions is better, and how sure that is: a paired bootstrap over users.

Events of one user are not independent, so users are drawn with replacement, and every file is
measured on the same draws: the interval of a difference is then far narrower than the intervals of
its two sides suggest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from prepared import label_of, read_candidates, read_manifest

from tzgen.errors import DataError

Floats = NDArray[np.float64]


class WeightedAUC:
    """AUC of fixed scores under changing row weights; ties count half.

    The order is found once, so that a bootstrap sample costs two passes over the rows.
    """

    def __init__(self, label: Floats, score: Floats) -> None:
        self._order = np.argsort(score, kind="stable")
        ranked = score[self._order]
        self._positive = label[self._order] > 0
        self._ties = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))

    def __call__(self, weight: Floats) -> float:
        weight = weight[self._order]
        positive = np.add.reduceat(np.where(self._positive, weight, 0.0), self._ties)
        negative = np.add.reduceat(np.where(self._positive, 0.0, weight), self._ties)
        pairs = positive.sum() * negative.sum()
        if pairs == 0:
            return float("nan")
        below = np.cumsum(negative) - negative
        return float((positive * (below + 0.5 * negative)).sum() / pairs)


class WeightedMSE:
    """Mean squared error of fixed scores under changing row weights."""

    def __init__(self, label: Floats, score: Floats) -> None:
        self._error = (label - score) ** 2

    def __call__(self, weight: Floats) -> float:
        return float((self._error * weight).sum() / weight.sum())


def auc(label: Floats, score: Floats) -> float:
    """Area under the ROC curve; nan where all labels are equal."""
    return WeightedAUC(label, score)(np.ones_like(score, dtype=np.float64))


def mean_squared_error(label: Floats, score: Floats) -> float:
    return float(np.mean((label - score) ** 2))


def user_weights(users: NDArray[np.int64], samples: int, seed: int) -> Iterator[Floats]:
    """Row weights of each bootstrap sample: how often the row's user was drawn."""
    _, row_user = np.unique(users, return_inverse=True)
    count = int(row_user.max()) + 1
    generator = np.random.default_rng(seed)
    for _ in range(samples):
        drawn = np.bincount(generator.integers(0, count, count), minlength=count)
        yield drawn[row_user].astype(np.float64)


def read_predictions(path: Path, keys: Sequence[str]) -> pl.DataFrame:
    """Keys and scores, one row per candidate; lists per request are unnested."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise DataError(
            file=str(path),
            found="no parquet file",
            expected="predictions",
            remedy="Write them with tools/baselines.py or python -m tzgen.predict.",
        )
    table = pl.read_parquet(files)
    for key in keys:
        if key not in table.columns:
            raise DataError(
                file=str(path),
                column=key,
                found=f"columns {', '.join(table.columns)}",
                expected="the key columns of the rows",
                remedy=f"Predict with --reserved_columns {','.join(keys)}.",
            )
    lists = [name for name, kind in table.schema.items() if isinstance(kind, pl.List)]
    return table.explode(lists) if lists else table


def aligned(path: Path, truth: pl.DataFrame, keys: Sequence[str], column: str) -> Floats | None:
    """Scores of a file in the order of the split's candidates; None where it lacks the task."""
    table = read_predictions(path, keys)
    if column not in table.columns:
        return None
    table = table.select(*keys, __score=pl.col(column).cast(pl.Float64))
    joined = truth.select(keys).join(table, on=list(keys), how="left", maintain_order="left")
    missing = int(joined["__score"].is_null().sum())
    if missing or table.height != truth.height or joined.height != truth.height:
        raise DataError(
            file=str(path),
            column=column,
            found=f"{table.height:,} scores, {missing:,} of the split's candidates without one",
            expected=f"one score for each of the split's {truth.height:,} candidates",
            remedy="Predict the same split of the same prepared rows.",
        )
    return joined["__score"].to_numpy()


def compare_files(
    files: Sequence[Path], data: Path, split: str, *, samples: int, seed: int
) -> Iterator[str]:
    """Lines of a report: per task each file's metric and its difference to the best file's."""
    manifest = read_manifest(data)
    keys: list[str] = manifest["keys"]
    tasks: dict[str, dict[str, Any]] = manifest["tasks"]
    columns = sorted({*keys, *(task["column"] for task in tasks.values())})
    truth = read_candidates(data, split, columns)
    twice = int(truth.select(keys).is_duplicated().sum())
    if twice:
        raise DataError(
            file=str(data / split),
            found=f"{twice:,} candidates that share {', '.join(keys)} with another",
            expected="one candidate for each key",
            remedy="Prepare the rows without --keep_duplicates.",
        )
    for name, task in tasks.items():
        regression = "bitmask" not in task
        label = truth.select(label_of(task)).to_series().to_numpy()
        kind, column = (WeightedMSE, f"y_{name}") if regression else (WeightedAUC, f"probs_{name}")
        metrics = {}
        for path in files:
            score = aligned(path, truth, keys, column)
            if score is not None:
                metrics[path] = kind(label, score)
        if metrics:
            weights = user_weights(truth["user_id"].to_numpy(), samples, seed)
            yield from _report(name, metrics, list(weights), len(label), regression)


def _report(
    task: str, metrics: dict[Path, Any], weights: list[Floats], rows: int, regression: bool
) -> Iterator[str]:
    point = {path: metric(np.ones(rows)) for path, metric in metrics.items()}
    drawn = {path: np.array([metric(w) for w in weights]) for path, metric in metrics.items()}
    best = (min if regression else max)(point, key=lambda path: point[path])
    unit = "MSE" if regression else "AUC"
    for path in metrics:
        line = f"{task} {unit} {point[path]:.4f} {_interval(drawn[path])}  {path}"
        if path != best:
            gap = drawn[path] - drawn[best]
            line += f"  difference to best {point[path] - point[best]:+.4f} {_interval(gap, '+')}"
        yield line


def _interval(values: Floats, sign: str = "") -> str:
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return f"[{low:{sign}.4f}, {high:{sign}.4f}]"
