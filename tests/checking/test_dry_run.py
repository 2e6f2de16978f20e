# SPDX-License-Identifier: Apache-2.0
"""A dry run computes what a training step computes, and leaves nothing changed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from checking.worlds import CPU, HSTU, TOWER, hstu_rows, tower_rows, tried, world
from tzgen.build import build_model, build_pipeline
from tzgen.checking import dry_run as module
from tzgen.checking.batch import batch_section
from tzgen.checking.dry_run import DryRun, dry_run
from tzgen.checking.rows import first_batch, opened
from tzgen.embeddings import LocalTables
from tzgen.errors import UserError
from tzgen.log import LOGGER
from tzgen.models.base import Model


def test_loss_and_gradients_are_those_of_a_training_step(tmp_path: Path) -> None:
    config, _ = world(tmp_path, HSTU, hstu_rows())
    run = dry_run(config, synthetic=False, device=CPU, source="x")
    pipeline = build_pipeline(config, engine="local")
    full, cut = pipeline.module.embeddings.tables, run.module.embeddings.tables
    assert isinstance(full, LocalTables) and isinstance(cut, LocalTables)
    for name, weight in full.weights.items():  # the rows of the cut tables, at their real ids
        used = {"item": [1, 2, 3, *range(6, 12), 40, 49], "user_emb": [0, 3, 5, 8]}
        ids = used.get(name, [0, 1, 2, 6])
        weight.data[ids] = cut.weights[name].data
    with opened(pipeline, synthetic=False) as rows:
        batch = first_batch(pipeline, rows, 4)
    loss, _ = pipeline.module.train()(batch)
    loss.backward()
    assert torch.equal(loss.detach(), run.output.loss)
    theirs = dict(run.module.head.named_parameters())
    for name, parameter in pipeline.module.head.named_parameters():
        assert torch.equal(parameter, theirs[name]), "the weights of the seed"
        grad, other = parameter.grad, theirs[name].grad
        assert (grad is None) == (other is None) and (grad is None or torch.equal(grad, other))


def test_what_the_layers_were_given(hstu: DryRun) -> None:
    (call,) = hstu.attended.values()
    assert list(hstu.attended) == ["head.model.transducer"]
    assert call.lengths.tolist() == [2 + 3 + 1, 2 + 6 + 3, 2 + 0 + 2, 2 + 1 + 1]
    assert call.num_targets.tolist() == [1, 3, 2, 1]


def test_models_without_attention(tower: DryRun) -> None:
    assert tower.attended == {} and tower.unsound == [] and tower.silent == ()
    assert tower.tried == tower.batch.num_rows == 4


def test_plan_keeps_the_sizes_of_the_config(hstu: DryRun) -> None:
    sizes = {name: spec.num_embeddings for name, spec in hstu.plan.tables.items()}
    assert sizes == {"item": 50, "user_emb": 9, "city_emb": 7}


def test_tables_beyond_any_memory_can_be_tried(tmp_path: Path) -> None:
    config, _ = world(tmp_path, TOWER, tower_rows())
    config.feature_configs[0].id_feature.num_buckets = 10**12
    run = dry_run(config, synthetic=False, device=CPU, source="x")
    assert run.plan.tables["user_emb"].num_embeddings == 10**12


def test_kept_for_backward_grows_with_the_rows(hstu: DryRun, tmp_path: Path) -> None:
    twice = tried(tmp_path, HSTU.replace("batch_size: 4", "batch_size: 8"), hstu_rows(2))
    assert 1.7 * hstu.saved_bytes < twice.saved_bytes < 2.1 * hstu.saved_bytes


def test_parameters_that_nothing_reaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_idle(*args: Any) -> Model:
        model = build_model(*args)
        model.idle = torch.nn.Parameter(torch.ones(3))
        model.frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        return model

    monkeypatch.setattr(module, "build_model", with_idle)
    run = tried(tmp_path, TOWER, tower_rows())
    assert run.silent == ("head.model.idle",)
    assert "reaches head.model.idle" in batch_section(run)


def test_numbers_that_must_not_be_trained_on(tmp_path: Path) -> None:
    ages = [[1.0, float("inf"), 3.0]] * 4
    run = tried(tmp_path, TOWER, tower_rows(age=ages))
    assert any(told.startswith("loss binary_cross_entropy_t is nan") for told in run.unsound)
    assert any("the gradient of head.model" in told for told in run.unsound)


def test_data_errors_name_file_and_row(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows\.parquet, row 1, column 'user'.*id 99"):
        tried(tmp_path, TOWER, tower_rows(user=[0, 99, 1, 2]))


def test_warnings_are_collected_once_and_the_logger_restored(tmp_path: Path) -> None:
    before = LOGGER.handlers[:], LOGGER.propagate
    config, _ = world(tmp_path, HSTU, hstu_rows())
    config.model_config.kernel = (
        config.model_config.DESCRIPTOR.fields_by_name["kernel"]
        .enum_type.values_by_name["CUTLASS"]
        .number
    )
    run = dry_run(config, synthetic=False, device=CPU, source="x")
    assert len([told for told in run.warnings if "CUTLASS" in told]) == 1
    assert (LOGGER.handlers[:], LOGGER.propagate) == before
    assert logging.getLogger("tzgen") is LOGGER
