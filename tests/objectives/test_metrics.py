# SPDX-License-Identifier: Apache-2.0
"""Every metric against scikit-learn, torchmetrics or a loop; merged over ranks; faded."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor
from torchmetrics import functional as tm

from objectives.cases import BCE, outputs_of, ragged, rows_batch, task_of
from tzgen.config.tasks import TaskSpec
from tzgen.data.batch import Batch
from tzgen.errors import ConfigError, UserError
from tzgen.models.base import Outputs
from tzgen.objectives.metrics import TaskMetrics, TrainMetrics

Data = list[tuple[Outputs, Batch]]
SOFTMAX = "losses {{ softmax_cross_entropy {{}} }} num_class: {}"
L2 = "losses { l2_loss {} }"


def batches(
    logits: Tensor, label: Tensor, sizes: Sequence[int], keys: Tensor | None = None
) -> Data:
    """Rows cut into batches of these sizes."""
    made, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        raw_ids = {} if keys is None else {"user": keys[part]}
        batch = rows_batch({"y": label[part]}, raw_ids=raw_ids)
        made.append((outputs_of({"click": logits[part]}), batch))
        start += size
    assert start == len(label)
    return made


def run(task: TaskSpec, data: Data, ranks: int = 1) -> dict[str, float]:
    """The metrics of `data`, dealt to ranks, whose states are gathered through pickles."""
    each = [TaskMetrics([task]) for _ in range(ranks)]
    for index, (outputs, batch) in enumerate(data):
        each[index % ranks].update(outputs, batch)
    states = [pickle.loads(pickle.dumps(metrics.state())) for metrics in each]
    values = [metrics.compute(lambda _: states) for metrics in each]
    for value in values[1:]:  # every rank knows the same; NaN is not equal to itself
        np.testing.assert_equal(value, values[0])
    return values[0]


def draw(count: int = 300, levels: int = 0) -> tuple[Tensor, Tensor]:
    logits = torch.randn(count)
    logits = (logits * levels).round() / levels if levels else logits
    return logits, (torch.rand(count) < torch.sigmoid(logits)).long()


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("levels", [0, 2])
def test_binary_metrics(ranks: int, levels: int) -> None:
    metrics = ["auc", "accuracy", "normalized_entropy", "xauc"]
    metrics += ["mean_absolute_error", "mean_squared_error"]
    task = task_of(BCE + "".join(f" metrics {{ {m} {{}} }}" for m in metrics))
    logits, label = draw(levels=levels)
    got = run(task, batches(logits, label, [100, 0, 1, 150, 49]), ranks)
    probs, y = torch.sigmoid(logits).numpy(), label.numpy()
    rate = y.mean()
    base = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    want = {
        "auc_click": sk.roc_auc_score(y, probs),
        "accuracy_click": sk.accuracy_score(y, probs > 0.5),
        "normalized_entropy_click": sk.log_loss(y, probs.astype(np.float64)) / base,
        "mean_absolute_error_click": sk.mean_absolute_error(y, probs),
        "mean_squared_error_click": sk.mean_squared_error(y, probs),
        "xauc_click": sk.roc_auc_score(y, probs),  # what it is where labels are 0 and 1
    }
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize("thresholds", [2, 7, 200])
def test_binned_auc_is_torchmetrics(thresholds: int) -> None:
    task = task_of(f"{BCE} metrics {{ auc {{ thresholds: {thresholds} }} }}")
    logits, label = draw()
    got = run(task, batches(logits, label, [150, 150]), 2)["auc_click"]
    want = tm.auroc(torch.sigmoid(logits), label, task="binary", thresholds=thresholds).item()
    assert got == pytest.approx(want, abs=1e-6)
    exact = sk.roc_auc_score(label, logits)
    assert (abs(got - exact) > 1e-4) == (thresholds < 200)


@pytest.mark.parametrize("average", ["macro", "weighted"])
@pytest.mark.parametrize("thresholds", [0, 50])
def test_multiclass(average: str, thresholds: int) -> None:
    auc = f'multiclass_auc {{ thresholds: {thresholds} average: "{average}" }}'
    task = task_of(f"{SOFTMAX.format(4)} metrics {{ {auc} }} metrics {{ accuracy {{ top_k: 2 }} }}")
    logits, label = torch.randn(200, 4), torch.randint(0, 3, (200,))  # class 3 never occurs
    data = batches(logits, label, [120, 80])
    got = run(task, data, 2)
    probs = torch.softmax(logits, 1)
    each = [
        tm.auroc(
            probs[:, c], (label == c).long(), task="binary", thresholds=thresholds or None
        ).item()
        for c in range(3)
    ]
    weights = np.bincount(label.numpy()) if average == "weighted" else None
    assert got["multiclass_auc_click"] == pytest.approx(np.average(each, weights=weights), abs=1e-6)
    top = sk.top_k_accuracy_score(label, probs.numpy(), k=2, labels=range(4))
    assert got["accuracy_click"] == pytest.approx(top)


def test_two_classes_are_measured_like_one_logit() -> None:
    logits, label = draw()
    names = "metrics { auc {} } metrics { normalized_entropy {} } metrics { mean_squared_error {} }"
    one = run(task_of(f"{BCE} {names}"), batches(logits, label, [300]))
    pair = torch.stack([torch.zeros(300), logits], 1)
    two = run(task_of(f"{SOFTMAX.format(2)} {names}"), batches(pair, label, [300]))
    assert one == pytest.approx(two, rel=1e-5)


@pytest.mark.parametrize("ranks", [1, 2])
def test_grouped_metrics_against_loops(ranks: int) -> None:
    task = task_of(
        f'{L2} metrics {{ grouped_auc {{ grouping_key: "user" }} }} '
        'metrics { grouped_xauc { grouping_key: "user" } } metrics { xauc {} } '
        'metrics { ndcg_at_k { top_k: 3 grouping_key: "user" } }'
    )
    y, s = torch.randint(0, 4, (150,)).float(), torch.randint(0, 9, (150,)).float()
    y = torch.where(torch.arange(150) % 7 == 0, 0, y)
    users = torch.randint(0, 30, (150,)) * 10**14
    got = run(task, batches(s, y, [50, 60, 40], users), ranks)

    def xauc(mine: Tensor) -> float:
        pairs = [(i, j) for i in mine for j in mine if y[i] > y[j]]
        credit = [1.0 if s[i] > s[j] else 0.5 if s[i] == s[j] else 0.0 for i, j in pairs]
        return float(np.mean(credit)) if pairs else math.nan

    aucs, xaucs, sizes, ndcgs = [], [], [], []
    for user in users.unique():
        mine = (users == user).nonzero().flatten()
        hit = (y[mine] > 0).long()
        if 0 < hit.sum() < len(hit):
            aucs.append(sk.roc_auc_score(hit, s[mine]))
        if not math.isnan(value := xauc(mine)):
            xaucs.append(value)
            sizes.append(len(mine))
        if hit.any():
            ndcgs.append(
                sk.ndcg_score([y[mine].numpy()], [s[mine].numpy()], k=3) if len(mine) > 1 else 1.0
            )
    assert got["grouped_auc_click"] == pytest.approx(np.mean(aucs))
    assert got["grouped_xauc_click"] == pytest.approx(np.average(xaucs, weights=sizes))
    assert got["xauc_click"] == pytest.approx(xauc(torch.arange(150)))
    assert got["ndcg@3_click"] == pytest.approx(np.mean(ndcgs))


def test_candidate_lists_are_rows() -> None:
    task = task_of(
        f"{BCE} metrics {{ recall_at_k {{ top_k: 2 }} }} metrics {{ ndcg_at_k {{ top_k: 2 }} }} "
        'metrics { grouped_auc { grouping_key: "user" } }'
    )
    lengths = [3, 0, 4, 1]
    logits = torch.tensor([3.0, 2, 1, 1, 2, 3, 4, 0])
    label = torch.tensor([0, 1, 1, 1, 1, 0, 0, 0])
    batch = Batch(
        4,
        labels={"y": ragged(label, lengths)},
        raw_ids={"user": torch.tensor([5, 6, 5, 7])},
    )
    got = run(task, [(outputs_of({"click": logits}, lengths), batch)])
    assert got["recall@2_click"] == pytest.approx(1 / 4)  # of four positives, one is in a top 2
    first = (1 / math.log2(3)) / (1 + 1 / math.log2(3))
    assert got["ndcg@2_click"] == pytest.approx((first + 0) / 2)
    mine = slice(0, 7)  # rows 0 and 2 are one user
    assert got["grouped_auc_click"] == pytest.approx(sk.roc_auc_score(label[mine], logits[mine]))


def test_in_batch_xauc_is_a_mean_over_batches() -> None:
    task = task_of(f"{L2} metrics {{ xauc {{ in_batch: true }} }}")
    s, y = torch.tensor([1.0, 2, 1, 2, 1, 1]), torch.tensor([1.0, 2, 2, 1, 3, 3])
    got = run(task, batches(s, y, [2, 2, 2]))  # right, wrong, no pair
    assert got == {"xauc_click": 0.5}


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("xauc { sample_ratio: 0.1 }", 1),
        ("xauc { max_pairs: 9 }", 1),
        ("xauc {}", 0),
        ("grouped_xauc { grouping_key: 'user' max_pairs_per_group: 9 }", 1),
    ],
)
def test_pair_sampling_is_said_to_be_unnecessary(
    metric: str, says: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("tzgen.objectives.metrics.warn_once", said.append)
    TaskMetrics([task_of(f"{L2} metrics {{ {metric} }}")])
    assert ["every pair is counted" in text for text in said] == [True] * says


UNDEFINED = ["auc", "mean_squared_error", "xauc", "normalized_entropy", "accuracy"]


def test_undefined_values_are_nan_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    body = "".join(f" metrics {{ {m} {{}} }}" for m in UNDEFINED)
    task = task_of(
        f"{BCE} {body} metrics {{ recall_at_k {{}} }} "
        'metrics { grouped_auc { grouping_key: "user" } }'
    )
    with caplog.at_level(logging.WARNING, logger="tzgen"):
        nothing = run(task, [])
    assert all(math.isnan(value) for value in nothing.values())
    assert "auc of task 'click' is undefined" in caplog.text
    caplog.clear()
    users = torch.zeros(3, dtype=torch.long)
    with caplog.at_level(logging.WARNING, logger="tzgen"):
        negatives = run(task, batches(torch.randn(3), torch.zeros(3), [3], users))
    undefined = {name for name, value in negatives.items() if math.isnan(value)}
    assert undefined == {"auc_click", "xauc_click", "recall@5_click", "grouped_auc_click"}
    assert "xauc of task 'click'" in caplog.text
    assert math.isfinite(negatives["normalized_entropy_click"])  # eta keeps the base above 0


def test_broken_scores_are_not_ranked() -> None:
    task = task_of(
        f"{BCE} metrics {{ auc {{}} }} metrics {{ xauc {{}} }} "
        'metrics { grouped_auc { grouping_key: "user" } }'
    )
    logits, label = torch.tensor([0.0, math.nan, 1.0]), torch.tensor([0, 1, 1])
    got = run(task, batches(logits, label, [3], torch.zeros(3).long()))
    assert all(math.isnan(value) for value in got.values())


def test_eta_is_read() -> None:
    task = task_of(f"{BCE} metrics {{ normalized_entropy {{ eta: 0.25 }} }}")
    logits = torch.zeros(4)
    got = run(task, batches(logits, torch.zeros(4), [4]))
    assert got["normalized_entropy_click"] == pytest.approx(math.log(2) / -math.log(0.75))


def test_accuracy_threshold() -> None:
    task = task_of(f"{BCE} metrics {{ accuracy {{ threshold: 0.7 }} }}")
    logits = torch.logit(torch.tensor([0.6, 0.8, 0.65, 0.9]))
    got = run(task, batches(logits, torch.tensor([1, 1, 0, 0]), [4]))
    assert got == {"accuracy_click": 0.5}


@pytest.mark.parametrize(
    ("body", "metric"),
    [
        (L2, "accuracy {}"),
        (L2, "normalized_entropy {}"),
        (BCE, "multiclass_auc {}"),
        (SOFTMAX.format(3), "auc {}"),
        (SOFTMAX.format(3), "mean_squared_error {}"),
        ("losses { listwise_rank_loss {} }", "accuracy {}"),
    ],
)
def test_metrics_without_meaning_are_refused(body: str, metric: str) -> None:
    with pytest.raises(ConfigError, match=rf"task 'click' metrics\[0\].*{metric[:-3]}"):
        TaskMetrics([task_of(f"{body} metrics {{ {metric} }}")])
    with pytest.raises(ConfigError, match="a metric not listed before"):
        TaskMetrics(
            [task_of(f"{BCE} metrics {{ auc {{}} }} metrics {{ auc {{ thresholds: 9 }} }}")]
        )


def test_merged_metrics_take_no_more_batches() -> None:
    task = task_of(f"{BCE} metrics {{ auc {{}} }}")
    metrics = TaskMetrics([task])
    data = batches(*draw(), [300])
    metrics.update(*data[0])
    first = metrics.compute(lambda state: [state, copy.deepcopy(state)])
    again = metrics.compute(lambda state: [state, state])
    assert first == again  # gathered once
    with pytest.raises(ValueError, match="merged already"):
        metrics.update(*data[0])


def test_the_confidence_key_must_be_in_the_batch() -> None:
    metrics = TaskMetrics(
        [task_of(f"{BCE} metrics {{ auc {{}} }}")], confidence_key="user", bootstrap_samples=5
    )
    with pytest.raises(UserError, match=r"eval_config\.confidence_key is 'user'"):
        metrics.update(*batches(*draw(4), [4])[0])


def test_tasks_without_metrics_cost_nothing() -> None:
    metrics = TaskMetrics([task_of(BCE)])
    metrics.update(outputs_of({}), rows_batch({"y": [0.0]}))
    assert metrics.compute() == {}


# ---- training ----


def train_task(metric: str, rate: float = 0.8, step: int = 2) -> TaskSpec:
    body = f"train_metrics {{ {metric} decay_rate: {rate} decay_step: {step} }}"
    return task_of(f"{L2 if 'error' in metric or 'xauc' in metric else BCE} {body}")


def test_training_values_fade() -> None:
    metrics = TrainMetrics([train_task("mean_absolute_error {}")])
    errors = [1.0, 3.0, 5.0, 7.0, 100.0]
    shown = []
    for error in errors:
        metrics.update(outputs_of({"click": torch.tensor([error])}), rows_batch({"y": [0.0]}))
        shown.append(metrics.compute().get("mean_absolute_error_click"))
    assert shown == [None, 2.0, 2.0, pytest.approx(0.8 * 2 + 0.2 * 6), pytest.approx(2.8)]


def test_training_auc_fades_by_its_histogram() -> None:
    metrics = TrainMetrics([train_task("auc {}", rate=0.5, step=1)])
    first, second = draw(400), draw(100)
    for logits, label in (first, second):
        metrics.update(*batches(logits, label, [len(label)])[0])
    logits, label = torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
    bins = (torch.sigmoid(logits) * 199).floor()
    want = sk.roc_auc_score(label, bins)  # 0.5 of each: the sum, weighted alike
    assert metrics.compute()["auc_click"] == pytest.approx(want, abs=1e-9)


def test_training_metrics_are_those_of_all_ranks() -> None:
    task = train_task("mean_absolute_error {}", step=1)
    ranks = [TrainMetrics([task]) for _ in range(2)]
    sums = [torch.tensor([4.0, 2.0], dtype=torch.float64), torch.tensor([5.0, 1.0]).double()]
    for metrics, errors in zip(ranks, ([1.0, 3.0], [5.0]), strict=True):
        batch = rows_batch({"y": [0.0] * len(errors)})
        outputs = outputs_of({"click": torch.tensor(errors)})
        metrics.update(outputs, batch, lambda mine: torch.stack(sums).sum(0))
    assert [m.compute() for m in ranks] == [{"mean_absolute_error_click": 3.0}] * 2


def same(one: dict[str, float], other: dict[str, float]) -> bool:
    return repr(one) == repr(other)  # NaN included


@pytest.mark.parametrize("stop", range(6))
def test_training_metrics_go_on_from_their_state(stop: int) -> None:
    """As JSON, as in a checkpoint; what was pending is on one rank, so that it counts once."""
    tasks = [train_task("auc { thresholds: 50 }", 0.9, 2), train_task("accuracy {}", 0.7, 3)]
    tasks = [replace(task, name=f"t{i}") for i, task in enumerate(tasks)]
    logits, label = draw(7 * 30)
    parts = zip(logits.split(30), label.split(30), strict=True)
    pieces = [(outputs_of({"t0": x, "t1": x}), rows_batch({"y": y})) for x, y in parts]
    whole, first = TrainMetrics(tasks), TrainMetrics(tasks)
    for outputs, batch in pieces:
        whole.update(outputs, batch)
    for outputs, batch in pieces[:stop]:
        first.update(outputs, batch)
    entry = json.loads(json.dumps(first.state()))
    resumed = TrainMetrics(tasks)
    resumed.load(entry)
    assert same(resumed.compute(), first.compute())
    for outputs, batch in pieces[stop:]:
        resumed.update(outputs, batch)
    assert same(resumed.compute(), whole.compute())
    ranks = [TrainMetrics(tasks) for _ in range(2)]
    for rank, metrics in enumerate(ranks):
        metrics.load(entry, rank=rank)
    total = [torch.tensor(sums, dtype=torch.float64) for sums in entry["pending"].values()]
    held = [[m.metric.sums for m in metrics._measured] for metrics in ranks]
    for sums, one, other in zip(total, *held, strict=True):
        assert torch.equal(one + other, sums)


def test_training_metrics_that_changed_start_anew() -> None:
    before = TrainMetrics([train_task("auc { thresholds: 50 }", step=1)])
    before.update(*batches(*draw(40), [40])[0])
    after = TrainMetrics([train_task("auc { thresholds: 60 }", step=1)])
    after.load(before.state())
    assert after.compute() == {}
    after.update(*batches(*draw(40), [40])[0])
    TrainMetrics([train_task("xauc {}", step=1)]).load(before.state())


@pytest.mark.parametrize("metric", ["recall_at_k { top_k: 1 }", "xauc {}", "accuracy {}", "auc {}"])
def test_training_metrics_survive_empty_batches(metric: str) -> None:
    metrics = TrainMetrics([train_task(metric, step=1)])
    label = torch.zeros(0, dtype=torch.long)
    batch = Batch(2, labels={"y": ragged(label, [0, 0])})
    metrics.update(outputs_of({"click": torch.zeros(0)}, [0, 0]), batch)
    assert all(math.isnan(value) for value in metrics.compute().values())
    batch = Batch(1, labels={"y": ragged([1, 0], [2])})
    metrics.update(outputs_of({"click": torch.tensor([2.0, 1.0])}, [2]), batch)
    assert list(metrics.compute().values()) == [0.5 if "accuracy" in metric else 1.0]
