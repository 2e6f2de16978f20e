# SPDX-License-Identifier: Apache-2.0
"""Best metric, patience, and what trainer.json brings back."""

from __future__ import annotations

import json
import math

import pytest
from google.protobuf import text_format

from tzgen.data.batch import Position
from tzgen.errors import UserError
from tzgen.protos.pipeline_pb2 import PipelineConfig
from tzgen.train.evaluator import Evaluation
from tzgen.train.progress import Progress, watched


def progress(text: str = "") -> Progress:
    return Progress(text_format.Parse(text, PipelineConfig()))


def take(one: Progress, step: int, **metrics: float) -> bool:
    one.step = step
    return one.take(Evaluation(metrics, {}, 5))


STOPPING = 'train_config {{ early_stopping {{ metric: "auc" patience_evals: 2 {more} }} }}'


def test_the_best_is_kept() -> None:
    one = progress()
    assert [take(one, step, auc=auc) for step, auc in enumerate([0.5, 0.4, 0.5, 0.6])] == [
        True,
        False,
        False,
        True,
    ]
    assert one.best == {"metric": "auc", "value": 0.6, "step": 3}
    small = progress('export_config { best_exporter_metric: "l" metric_larger_is_better: false }')
    assert [take(small, 1, l=3.0), take(small, 2, l=2.0), take(small, 3, l=2.5)] == [1, 1, 0]


def test_undefined_and_absent_metrics_are_never_the_best() -> None:
    one = progress()
    assert not take(one, 1, auc=math.nan) and not take(one, 2, loss=1.0)
    assert one.best is None
    assert take(one, 3, auc=0.1)


def test_a_metric_without_its_task_is_the_mean() -> None:
    metrics = {"auc_a": 0.5, "auc_b": 0.7, "auc": 0.1, "loss_a": 9.0}
    assert watched(metrics, "auc", required=True) == 0.1
    del metrics["auc"]
    assert watched(metrics, "auc", required=True) == pytest.approx(0.6)
    assert watched(metrics, "recall", required=False) is None
    with pytest.raises(UserError, match=r"recall.*auc_a"):
        watched(metrics, "recall", required=True)


def test_patience() -> None:
    one = progress(STOPPING.format(more=""))
    stopped = []
    for step, auc in enumerate([0.5, 0.4, 0.6, 0.6, 0.59]):
        take(one, step, auc=auc)
        stopped.append(one.stopped)
    assert stopped == [False, False, False, False, True]


def test_small_improvements_and_smaller_being_better() -> None:
    one = progress(STOPPING.format(more="min_delta: 0.1"))
    for step, auc in enumerate([0.5, 0.55, 0.59]):
        take(one, step, auc=auc)
    assert one.stopped and one.best["value"] == 0.59, "the best is the best all the same"
    falling = progress(STOPPING.format(more="metric_larger_is_better: false"))
    for step, auc in enumerate([0.5, 0.4, 0.3, 0.2]):
        take(falling, step, auc=auc)
    assert not falling.stopped


def test_watched_metrics_are_demanded_before_the_start() -> None:
    progress().require_metrics(["auc_a"])
    one = progress(STOPPING.format(more=""))
    one.require_metrics(["auc_a"])
    with pytest.raises(UserError, match=r"'auc'.*recall"):
        one.require_metrics(["recall"])
    with pytest.raises(UserError, match=r"early_stopping.*eval_input_path"):
        one.require_metrics([])
    named = progress('export_config { best_exporter_metric: "ndcg" }')
    named.require_metrics([])
    with pytest.raises(UserError, match="ndcg"):
        named.require_metrics(["auc"])


def test_trainer_json_brings_everything_back() -> None:
    one = progress(STOPPING.format(more=""))
    one.position = Position(42, 3, 17, "print")
    take(one, 7, auc=0.5, recall=math.nan)
    take(one, 9, auc=0.4, recall=math.nan)
    other = progress(STOPPING.format(more=""))
    other.load(json.loads(json.dumps(one.as_json())))
    assert other.as_json() == one.as_json()
    assert other.position == one.position and other.saved_step == other.step == 9
    assert other.evaluation is not None and math.isnan(other.evaluation.metrics["recall"])
    take(other, 11, auc=0.3)
    assert other.stopped, "patience goes on counting"
