# SPDX-License-Identifier: Apache-2.0
"""Where weights are: the module placed on its device, and a checkpoint's weights in a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tzgen.build import Pipeline, build_pipeline
from tzgen.embeddings import OptimizerSpec
from tzgen.embeddings.tables import model_state
from tzgen.features import Constraints
from tzgen.log import LOGGER
from tzgen.train import checkpoint
from tzgen.train.environment import Env


def place(pipeline: Pipeline, env: Env, optimizer: OptimizerSpec) -> nn.Module:
    """The pipeline's module where it trains: sharded by TorchRec, or moved to the device."""
    if pipeline.engine == "local":
        return pipeline.module.to(env.device)
    from tzgen.embeddings.sharding import shard

    config = pipeline.config.train_config
    constraints = None
    if config.HasField("global_embedding_constraints"):
        given = config.global_embedding_constraints
        constraints = Constraints(tuple(given.sharding_types), tuple(given.compute_kernels))
    return shard(
        pipeline.module,
        device=env.device,
        optimizer=optimizer,
        constraints=constraints,
        batch_size=pipeline.config.data_config.batch_size,
        data_parallel=False,  # Updater averages dense gradients, once a step
    )


def load_weights(
    pipeline: Pipeline, found: checkpoint.Checkpoint, *, averaged: bool | None
) -> None:
    """Fill a local-engine pipeline from a checkpoint, for evaluation, prediction or export.

    `averaged` None takes the moving averages of dense weights where the checkpoint has them.
    """
    checkpoint.verify(found)
    weights = model_state(pipeline.module)
    checkpoint.load_state(weights, found.path / "model")
    if averaged is False:
        return
    stored = checkpoint.stored_tensors(found.path / "optimizer")
    averages = {
        f"ema.{name}": tensor for name, tensor in weights.items() if f"ema.{name}" in stored
    }
    checkpoint.load_state(averages, found.path / "optimizer")


def trained_pipeline(
    config: Any,
    checkpoint_path: str | None,
    *,
    labels: bool = True,
    reserved_columns: Sequence[str] = (),
    best: bool = False,
    averaged: bool | None = None,
) -> tuple[Pipeline, dict[str, Any]]:
    """A local-engine pipeline with a checkpoint's weights, and manifest entries that say whose."""
    found = choose_checkpoint(config, checkpoint_path, best=best)
    pipeline = build_pipeline(
        config, engine="local", labels=labels, reserved_columns=reserved_columns
    )
    load_weights(pipeline, found, averaged=averaged)
    pipeline.module.eval()
    LOGGER.info("weights of %s", found.path)
    kept = ("metrics", "data_fingerprint", "seed", "config_hash", "git_revision", "substitutions")
    entries = {name: found.manifest.get(name) for name in kept}
    return pipeline, {"checkpoint": found.path.name, "step": found.step, **entries}


def choose_checkpoint(
    config: Any, path: str | None, *, best: bool = False
) -> checkpoint.Checkpoint:
    """`path`, else the best (by the run's own notes) or newest checkpoint of config.model_dir."""
    newest = checkpoint.open_checkpoint(Path(path or config.model_dir))
    if path or not best or not newest.trainer["best"]:
        return newest
    return checkpoint.open_checkpoint(
        newest.path.parent / f"model.ckpt-{newest.trainer['best']['step']}"
    )
