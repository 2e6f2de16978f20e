# SPDX-License-Identifier: Apache-2.0
"""Both forms of a step compute the same; every collection is pipelined; an update has its order."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from google.protobuf import text_format
from torch import nn
from train.train_world import ENV, batches_of, pipeline_of

from tzgen.build import open_loader
from tzgen.embeddings import dense_parameters, model_state, optimizer_spec, sparse_optimizer
from tzgen.models.base import Model
from tzgen.protos.optimizer_pb2 import DenseOptimizer as DenseMessage
from tzgen.protos.train_pb2 import GradClipping
from tzgen.train.environment import environment
from tzgen.train.optimizers import Average, DenseOptimizer
from tzgen.train.state import RunState
from tzgen.train.step import DirectStep, PipelinedStep, Updater
from tzgen.train.weights import place

STILL = "train_config.dense_optimizer.sgd_optimizer={ lr: 0.05 momentum: 0 }"


def trained(folder: Path, *overrides: str, form: type, engine: str = "torchrec", **options):
    """(losses of an epoch, module, stepper) with a stepper of this form."""
    with environment() as env:
        pipeline = pipeline_of(folder, STILL, *overrides, engine=engine)
        spec = optimizer_spec(pipeline.config.train_config.sparse_optimizer)
        module = place(pipeline, env, spec)
        sparse_optimizer(module, spec)
        message = pipeline.config.train_config.dense_optimizer
        dense = DenseOptimizer(message, dense_parameters(module))
        told = pipeline.model.end_step
        updater = Updater(dense, env=env, clipping=None, average=None, end_step=told)
        stepper = form(module, updater, env=env, **options)
        loader = open_loader(pipeline, pipeline.config.train_input_path, mode="train")
        found, batches = [], loader.epoch(None, 0)
        while (output := stepper.progress(batches)) is not None:
            found.append(float(output.loss))
            assert output.batch.num_rows == 8
        assert stepper.progress(batches) is None, "and stays at the end"
        if not found[1:]:
            raise AssertionError("no steps")
        numbers = {
            name: value for name, value in model_state(module).items() if "tables" not in name
        }
        return found, {name: value.clone() for name, value in numbers.items()}, stepper


def test_pipelined_and_direct_compute_the_same(tmp_path: Path) -> None:
    piped, weights, stepper = trained(tmp_path, form=PipelinedStep)
    direct, others, _ = trained(tmp_path, form=DirectStep)
    assert len(piped) == 3 and piped == direct
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name
    collections = 2  # one of sequence tables, one of pooled tables
    assert stepper.num_pipelined == collections


def test_micro_batches_step_the_tables_once(tmp_path: Path, monkeypatch) -> None:
    calls: list[int] = []
    module = importlib.import_module("tzgen.embeddings.sparse_optimizer")
    plain = module.LocalSparseOptimizer._apply
    monkeypatch.setattr(
        module.LocalSparseOptimizer,
        "_apply",
        lambda self, name, weight: (calls.append(1), plain(self, name, weight))[1],
    )
    trained(tmp_path, form=DirectStep, engine="local")
    once = len(calls)
    calls.clear()
    trained(tmp_path, form=DirectStep, engine="local", micro_batches=4)
    assert len(calls) == once == 3 * 3, "three tables, three steps"


def test_a_pause_loses_no_batch(tmp_path: Path) -> None:
    """Evaluation comes between two steps while the next batches are under way."""
    with environment() as env:
        config = pipeline_of(tmp_path, engine="torchrec")
        loader = open_loader(config, config.config.train_input_path, mode="train")
        state = RunState(config, env, tmp_path / "m", loader)
        batches, rows = loader.epoch(None, 0), []
        while (output := state.stepper.progress(batches)) is not None:
            rows += output.batch.source.row.tolist()
            state.stepper.pause()
            with torch.no_grad():
                state.module(batches_of(config, "eval")[0])
    assert sorted(rows) == list(range(24))


def test_the_engine_and_accumulation_choose_the_form(tmp_path: Path) -> None:
    with environment() as env:
        for sets, engine, form in (
            ((), "torchrec", PipelinedStep),
            ((), "local", DirectStep),
            (("train_config.gradient_accumulation_steps=2",), "torchrec", DirectStep),
        ):
            pipeline = pipeline_of(tmp_path, *sets, engine=engine)
            loader = open_loader(pipeline, pipeline.config.train_input_path, mode="train")
            assert isinstance(RunState(pipeline, env, tmp_path, loader).stepper, form)


@pytest.mark.parametrize(
    ("engine", "sets", "steps"),
    [
        ("local", (), 3),
        ("torchrec", (), 3),
        ("local", ("train_config.gradient_accumulation_steps=2",), 2),  # 16 rows, then 8
    ],
)
def test_the_model_is_told_of_every_step_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    sets: tuple[str, ...],
    steps: int,
) -> None:
    told: list[object] = []
    monkeypatch.setattr(Model, "end_step", lambda self: told.append(self))
    with environment() as env:
        pipeline = pipeline_of(tmp_path, *sets, engine=engine)
        loader = open_loader(pipeline, pipeline.config.train_input_path, mode="train")
        state = RunState(pipeline, env, tmp_path / "m", loader)
        batches, found = loader.epoch(None, 0), 0
        while state.stepper.progress(batches) is not None:
            found += 1
            assert told == [pipeline.model] * found
    assert found == steps


def test_an_update_clips_then_steps_then_tells_then_averages() -> None:
    weight = nn.Parameter(torch.zeros(2))
    message = text_format.Parse("sgd_optimizer { lr: 1 momentum: 0 }", DenseMessage())
    dense = DenseOptimizer(message, [("w", weight)])
    dense.set_rates(0, 0)
    clipping = GradClipping(clipping_type="norm", max_gradient=1.0)
    average = Average(0.5, dense.parameters)

    def told() -> None:
        torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]))
        torch.testing.assert_close(average.shadow["w"], torch.zeros(2))

    updater = Updater(dense, env=ENV, clipping=clipping, average=average, end_step=told)
    updater.zero_grad()
    weight.grad = torch.tensor([3.0, 4.0])
    updater.step()
    assert updater.gradient_norm == pytest.approx(5.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]))
    torch.testing.assert_close(average.shadow["w"], torch.tensor([-0.3, -0.4]))
    updater.zero_grad()
    assert weight.grad is None
