# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's weights in a pipeline: which checkpoint, averaged or not, placed where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from integration.world import weights
from train.test_state import epoch_of, state_of, stepped
from train.train_world import pipeline_of

from tzgen.errors import UserError
from tzgen.train.environment import environment
from tzgen.train.weights import choose_checkpoint, load_weights, trained_pipeline


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """Checkpoints 1 and 2 of a run with averages; the first is noted as the best."""
    with environment() as env:
        pipeline, state, progress = state_of(tmp_path, env)
        batches = epoch_of(pipeline)
        stepped(state, progress, batches)
        state.save(progress)
        progress.best = {"metric": "auc", "value": 0.5, "step": 1}
        stepped(state, progress, batches)
        state.save(progress)
    return tmp_path / "m"


def test_newest_best_or_named(model_dir: Path) -> None:
    config = pipeline_of(model_dir.parent).config
    config.model_dir = str(model_dir)
    assert choose_checkpoint(config, None).step == 2
    assert choose_checkpoint(config, None, best=True).step == 1
    named = str(model_dir / "model.ckpt-1")
    assert choose_checkpoint(config, named).step == 1
    assert choose_checkpoint(config, str(model_dir), best=True).step == 2, "a path is a path"
    with pytest.raises(UserError, match=r"ckpt-7"):
        choose_checkpoint(config, str(model_dir / "model.ckpt-7"))


def test_averages_are_taken_unless_declined(model_dir: Path) -> None:
    stored = weights(model_dir, 2)
    averages = weights(model_dir, 2, "optimizer")
    pipeline = pipeline_of(model_dir.parent)
    pipeline.config.model_dir = str(model_dir)
    found = choose_checkpoint(pipeline.config, None)
    dense = [name for name in stored if f"ema.{name}" in averages]
    assert dense and any(not torch.equal(stored[n], averages[f"ema.{n}"]) for n in dense)
    for averaged in (None, True, False):
        load_weights(pipeline, found, averaged=averaged)
        state = pipeline.module.state_dict()
        for name in dense:
            expected = stored[name] if averaged is False else averages[f"ema.{name}"]
            assert torch.equal(state[name], expected), name


def test_a_trained_pipeline_tells_where_it_came_from(model_dir: Path) -> None:
    config = pipeline_of(model_dir.parent).config
    config.model_dir = str(model_dir)
    pipeline, origin = trained_pipeline(config, None)
    assert pipeline.engine == "local" and not pipeline.module.training
    assert origin["checkpoint"] == "model.ckpt-2" and origin["step"] == 2
    assert origin["config_hash"] and origin["data_fingerprint"]
    state = pipeline.module.state_dict()
    table = state["embeddings.tables.weights.video"]
    assert torch.equal(table, weights(model_dir, 2)["tables.video"])
