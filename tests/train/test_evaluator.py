# SPDX-License-Identifier: Apache-2.0
"""Evaluation over batches equals evaluation of all rows at once; modes and weights stay."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score
from train.train_world import ENV, batches_of, moved, pipeline_of, snapshot

from tzgen.build import open_loader
from tzgen.train.evaluator import Evaluation, evaluate, evaluated_names


def loader(pipeline, **options):
    return open_loader(pipeline, pipeline.config.eval_input_path, mode="eval", **options)


@pytest.fixture
def pipeline(tmp_path: Path):
    return pipeline_of(tmp_path)


def test_values_are_those_of_all_rows(pipeline) -> None:
    found = evaluate(pipeline, pipeline.module, loader(pipeline), env=ENV)
    pipeline.module.eval()
    logits, labels, squares = [], [], []
    for batch in batches_of(pipeline, "eval"):
        with torch.no_grad():
            _, output = pipeline.module(batch)
        logits.append(output.outputs.logits["click"].flatten())
        labels.append(batch.labels["cand__action"].values & 1)
        errors = output.outputs.logits["seconds"].flatten() - batch.labels["cand__seconds"].values
        squares.append(errors.square())
    score, label = torch.cat(logits), torch.cat(labels)
    assert found.num_rows == 21
    assert found.metrics["auc_click"] == pytest.approx(roc_auc_score(label, score), abs=1e-6)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(score, label.float())
    assert found.metrics["loss_binary_cross_entropy_click"] == pytest.approx(float(loss), rel=1e-5)
    mean = float(torch.cat(squares).mean())
    assert found.metrics["loss_l2_loss_seconds"] == pytest.approx(mean, rel=1e-5)
    assert set(found.metrics) == set(evaluated_names(pipeline))


def test_nothing_is_changed(pipeline) -> None:
    before = snapshot(pipeline)
    pipeline.module.train()
    evaluate(pipeline, pipeline.module, loader(pipeline), env=ENV)
    assert pipeline.module.training and moved(before, pipeline) == []
    pipeline.module.eval()
    evaluate(pipeline, pipeline.module, loader(pipeline), env=ENV)
    assert not pipeline.module.training


def test_the_mode_is_restored_after_an_error(pipeline) -> None:
    class Broken(torch.nn.Module):
        def forward(self, batch):
            raise RuntimeError("no")

    module = Broken().train()
    with pytest.raises(RuntimeError):
        evaluate(pipeline, module, loader(pipeline), env=ENV)
    assert module.training


def test_a_limit_of_batches(pipeline) -> None:
    found = evaluate(pipeline, pipeline.module, loader(pipeline), env=ENV, max_batches=2)
    assert found.num_rows == 16
    all_of_them = evaluate(pipeline, pipeline.module, loader(pipeline), env=ENV, max_batches=99)
    assert all_of_them.num_rows == 21


def test_intervals_over_users(tmp_path: Path) -> None:
    sets = ('eval_config.confidence_key="user"', "eval_config.bootstrap_samples=50")
    pipeline = pipeline_of(tmp_path, *sets)
    found = evaluate(pipeline, pipeline.module, loader(pipeline), env=ENV, intervals=True)
    low, high = found.intervals["auc_click"]
    assert low < found.metrics["auc_click"] < high
    assert evaluate(pipeline, pipeline.module, loader(pipeline), env=ENV).intervals == {}


def test_tables_and_json() -> None:
    one = Evaluation({"b": math.nan, "a": 0.5}, {"a": (0.4, 0.6)}, 7)
    lines = one.table().splitlines()
    assert lines[0].split() == ["a", "0.50000", "[0.40000,", "0.60000]"]
    assert lines[1].split() == ["b", "undefined"]
    assert json.loads(json.dumps(one.as_json()))["metrics"] == {"a": 0.5, "b": None}
