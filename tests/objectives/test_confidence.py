# SPDX-License-Identifier: Apache-2.0
"""Intervals against resampling by hand, and against the spread of fresh data."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from objectives.cases import BCE, outputs_of, ragged, task_of
from tzgen.config.tasks import TaskSpec
from tzgen.data.batch import Batch
from tzgen.errors import UserError
from tzgen.objectives import confidence
from tzgen.objectives.confidence import paired_bootstrap
from tzgen.objectives.metrics import TaskMetrics

KINDS = (
    "auc {}",
    "accuracy {}",
    "normalized_entropy {}",
    "mean_squared_error {}",
    "xauc {}",
    "recall_at_k { top_k: 1 }",
    "ndcg_at_k { top_k: 2 }",
    'grouped_auc { grouping_key: "request" }',
    'grouped_xauc { grouping_key: "request" }',
)
TASK = task_of(BCE + "".join(f" metrics {{ {kind} }}" for kind in KINDS))
BINNED = task_of(f"{BCE} metrics {{ auc {{ thresholds: 40 }} }}")


def data(rows: int = 40, users: int = 12) -> tuple[torch.Tensor, Batch, list[int]]:
    """Requests of 0 to 5 candidates; a user has several requests."""
    lengths = [i % 6 for i in range(rows)]
    logits = torch.randn(sum(lengths)).mul(2).round().div(2)
    label = (torch.rand(sum(lengths)) < torch.sigmoid(logits)).long()
    batch = Batch(
        rows,
        labels={"y": ragged(label, lengths)},
        raw_ids={
            "user": torch.randint(0, users, (rows,)) - 3 * 10**12,
            "request": torch.arange(rows) + 10**12,
        },
    )
    return logits, batch, lengths


def duplicated(logits: torch.Tensor, batch: Batch, lengths: list[int], draw: np.ndarray) -> tuple:
    """The rows of the drawn users, as often as each is drawn; requests renamed to stay apart."""
    label = batch.labels["y"]
    starts = np.cumsum([0, *lengths])
    parts, kept, users, requests = [], [], [], []
    for user in draw:
        for row in (batch.raw_ids["user"] == user).nonzero().flatten().tolist():
            parts += list(range(starts[row], starts[row + 1]))
            kept.append(lengths[row])
            users.append(user)
            requests.append(len(requests))
    columns = {"user": torch.tensor(users), "request": torch.tensor(requests)}
    labels = {"y": ragged(label.values[parts], kept)}  # type: ignore[union-attr]
    return logits[parts], Batch(len(kept), labels=labels, raw_ids=columns), kept


@pytest.mark.parametrize("task", [TASK, BINNED], ids=["all", "binned"])
def test_intervals_are_those_of_duplicated_rows(task: TaskSpec) -> None:
    """Weights on prepared metrics give what computing each metric anew on drawn users gives."""
    logits, batch, lengths = data()
    samples = 30
    metrics = TaskMetrics([task], confidence_key="user", bootstrap_samples=samples, seed=7)
    metrics.update(outputs_of({"click": logits}, lengths), batch)
    got = metrics.intervals()
    # users without any candidate have nothing to draw
    with_rows = batch.raw_ids["user"][torch.tensor(lengths) > 0]
    users = np.unique(with_rows.numpy())
    generator = np.random.default_rng(7)
    drawn: dict[str, list[float]] = {}
    for _ in range(samples):
        chosen = users[generator.integers(0, len(users), len(users))]
        part, rows, kept = duplicated(logits, batch, lengths, chosen)
        anew = TaskMetrics([task])
        anew.update(outputs_of({"click": part}, kept), rows)
        for name, value in anew.compute().items():
            drawn.setdefault(name, []).append(value)
    assert got.keys() == drawn.keys()
    for name, values in drawn.items():
        want = confidence.bounds(np.array(values))
        assert got[name] == pytest.approx(want, abs=1e-6), name


def test_intervals_merge_over_ranks() -> None:
    logits, batch, lengths = data()

    def made() -> TaskMetrics:
        return TaskMetrics([TASK], confidence_key="user", bootstrap_samples=10, seed=1)

    whole, left, right = made(), made(), made()
    whole.update(outputs_of({"click": logits}, lengths), batch)
    cut = sum(lengths[:20])
    label = batch.labels["y"].values  # type: ignore[union-attr]
    for metrics, rows, part in (
        (left, slice(0, 20), slice(0, cut)),
        (right, slice(20, 40), slice(cut, None)),
    ):
        ids = {name: column[rows] for name, column in batch.raw_ids.items()}
        piece = Batch(20, labels={"y": ragged(label[part], lengths[rows])}, raw_ids=ids)
        metrics.update(outputs_of({"click": logits[part]}, lengths[rows]), piece)
    states = [left.state(), right.state()]
    got, want = right.intervals(lambda _: states), whole.intervals()
    assert got.keys() == want.keys()
    for name in want:
        assert got[name] == pytest.approx(want[name], abs=1e-9), name


def test_no_key_or_no_samples_gives_none() -> None:
    logits, batch, lengths = data()
    for key, samples in (("", 10), ("user", 0)):
        metrics = TaskMetrics([TASK], confidence_key=key, bootstrap_samples=samples)
        metrics.update(outputs_of({"click": logits}, lengths), batch)
        assert metrics.intervals() == {}
        assert "users" not in metrics.state()["auc_click"]


def test_undefined_metrics_have_no_interval() -> None:
    metrics = TaskMetrics([TASK], confidence_key="user", bootstrap_samples=10)
    logits, batch, lengths = data()
    batch.labels["y"] = ragged(torch.zeros(sum(lengths), dtype=torch.long), lengths)
    metrics.update(outputs_of({"click": logits}, lengths), batch)
    got = metrics.intervals()
    assert "auc_click" not in got
    assert all(math.isfinite(x) for pair in got.values() for x in pair)


def clustered(
    seed: int, users: int = 60, rows: int = 8
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scores, labels, users): a user's rows share an effect on score and label."""
    g = np.random.default_rng(seed)
    effect = np.repeat(g.normal(size=users), rows)
    scores = effect + 0.3 * g.normal(size=users * rows)
    labels = (0.6 * effect + g.normal(size=users * rows) > 0).astype(int)
    return scores, labels, np.repeat(np.arange(users), rows)


def test_drawing_users_measures_the_spread_over_data_sets() -> None:
    """Rows of one user are alike: drawing users is as wide as fresh data, drawing rows is not."""
    fresh = [roc_auc_score(y, s) for s, y, _ in map(clustered, range(200))]
    spread = np.percentile(fresh, 97.5) - np.percentile(fresh, 2.5)

    def width(scores: np.ndarray, labels: np.ndarray, users: np.ndarray) -> float:
        result = paired_bootstrap(labels, np.zeros(len(labels)), scores, users, samples=300)
        return result.high - result.low  # against a constant, whose AUC is always a half

    runs = [clustered(seed) for seed in range(1000, 1010)]
    by_user = np.mean([width(*run) for run in runs])
    by_row = np.mean([width(s, y, np.arange(len(y))) for s, y, _ in runs])
    assert by_user == pytest.approx(spread, rel=0.25)
    assert by_row < 0.8 * spread


def test_paired_bootstrap() -> None:
    g = np.random.default_rng(0)
    truth = g.normal(size=4000)
    labels, users = (truth + g.normal(size=4000) > 0).astype(int), g.integers(0, 300, 4000)
    better, worse = truth + 0.5 * g.normal(size=4000), truth + 1.0 * g.normal(size=4000)
    result = paired_bootstrap(labels, worse, better, users, samples=200, seed=3)
    assert result.auc_a == pytest.approx(roc_auc_score(labels, worse))
    assert result.difference == pytest.approx(result.auc_b - result.auc_a)
    assert 0 < result.low < result.difference < result.high
    assert result.is_different and result.share_not_better == 0.0
    assert result == paired_bootstrap(labels, worse, better, users, samples=200, seed=3)
    names = np.array([f"u{user:03d}" for user in users])
    assert result == paired_bootstrap(labels, worse, better, names, samples=200, seed=3)
    same = paired_bootstrap(labels, better, 10 * better, users, samples=20)
    assert (same.low, same.high, same.is_different) == (0.0, 0.0, False)


@pytest.mark.parametrize(
    ("labels", "users", "match"),
    [([1, 0], [1], r"\[2, 2, 2, 1\]"), ([1, 1], [1, 2], "both classes"), ([], [], "above 0")],
)
def test_paired_bootstrap_refuses(labels: list[int], users: list[int], match: str) -> None:
    scores = np.zeros(len(labels))
    with pytest.raises(UserError, match=match):
        paired_bootstrap(labels, scores, scores, users)


def test_speed_of_two_hundred_samples() -> None:
    """One sort and cheap passes: 200 draws of 100 000 rows in seconds, not minutes."""
    rows = 100_000
    batch = Batch(
        rows,
        labels={"y": torch.randint(0, 2, (rows,))},
        raw_ids={"user": torch.randint(0, 10_000, (rows,))},
    )
    task = task_of(f"{BCE} metrics {{ auc {{}} }} metrics {{ accuracy {{}} }}")
    metrics = TaskMetrics([task], confidence_key="user", bootstrap_samples=200)
    metrics.update(outputs_of({"click": torch.randn(rows)}), batch)
    start = time.perf_counter()
    low, high = metrics.intervals()["auc_click"]
    assert time.perf_counter() - start < 30
    assert low < 0.5 + 0.005 and high > 0.5 - 0.005 and high - low < 0.02
