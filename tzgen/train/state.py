# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint holds of a run, and how it comes back: module, optimizers, averages, progress.

Names in a checkpoint do not depend on the engine or the number of ranks: `tables.<table>` and the
names of the unwrapped module's parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tzgen import config as configs
from tzgen.build import Pipeline, StepOutput
from tzgen.data.batch import Position
from tzgen.data.loader import BatchLoader
from tzgen.embeddings import (
    OptimizerSpec,
    dense_parameters,
    optimizer_spec,
    sparse_optimizer,
)
from tzgen.embeddings.tables import model_state
from tzgen.errors import UserError
from tzgen.log import LOGGER
from tzgen.train import checkpoint
from tzgen.train.compatibility import require_compatible
from tzgen.train.environment import Env
from tzgen.train.fine_tune import start_from
from tzgen.train.manifest import provenance
from tzgen.train.optimizers import Average, DenseOptimizer
from tzgen.train.progress import Progress
from tzgen.train.schedules import schedule_of
from tzgen.train.step import DirectStep, ObserveStep, PipelinedStep, Stepper, Updater
from tzgen.train.weights import place


class RunState:
    """The trained module with its optimizers, and what saves and restores them."""

    def __init__(self, pipeline: Pipeline, env: Env, model_dir: Path, loader: BatchLoader) -> None:
        self._pipeline, self._env, self._model_dir, self._loader = pipeline, env, model_dir, loader
        config = pipeline.config.train_config
        spec = _sparse_spec(config)
        self.module: nn.Module = place(pipeline, env, spec)
        group = torch.distributed.group.WORLD if env.world_size > 1 else None
        self._sparse = sparse_optimizer(self.module, spec, process_group=group)
        self._sparse_schedule = schedule_of(config.sparse_optimizer, spec.lr)
        self._dense = DenseOptimizer(config.dense_optimizer, dense_parameters(self.module))
        self._average: Average | None = None
        if config.dense_optimizer.HasField("ema"):
            self._average = Average(config.dense_optimizer.ema.decay, self._dense.parameters)
        clipping = config.grad_clipping if config.HasField("grad_clipping") else None
        updater = Updater(
            self._dense,
            env=env,
            clipping=clipping,
            average=self._average,
            end_step=pipeline.model.end_step,
        )
        micro = max(config.gradient_accumulation_steps, 1)
        self.stepper: Stepper
        if pipeline.model.fits:
            self.stepper = ObserveStep(self.module, env=env)
        elif pipeline.engine == "torchrec" and micro == 1:
            self.stepper = PipelinedStep(self.module, updater, env=env)
        else:
            self.stepper = DirectStep(self.module, updater, env=env, micro_batches=micro)
        self.train_metrics = pipeline.train_metrics()
        self.dense_rate = self.sparse_rate = 0.0
        self.module.train()

    def set_rates(self, step: int, epoch: int) -> None:
        """Apply both learning-rate schedules for a step, counted from 0."""
        self.dense_rate = self._dense.set_rates(step, epoch)
        self.sparse_rate = self._sparse_schedule.at(step, epoch)
        self._sparse.set_lr(self.sparse_rate)

    def mean_losses(self, output: StepOutput) -> dict[str, float]:
        """{"loss", "loss_<term>"...} over the samples of all ranks; all ranks must call."""
        terms = output.terms
        sums = [output.loss, *(term.total for term in terms.values())]
        counts = [torch.ones_like(output.loss), *(term.count for term in terms.values())]
        flat = torch.stack([*sums, *(count.to(output.loss) for count in counts)]).double()
        total, count = self._env.sum(flat).view(2, -1).tolist()
        names = ("loss", *(f"loss_{name}" for name in terms))
        return {n: t / c if c else 0.0 for n, t, c in zip(names, total, count, strict=True)}

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Dense weights are their moving averages inside, where that is configured."""
        config = self._pipeline.config.eval_config
        wanted = not config.HasField("use_dense_ema") or config.use_dense_ema
        if self._average is None or not wanted:
            yield
            return
        self._average.swap()
        try:
            yield
        finally:
            self._average.swap()

    def restart_average(self) -> None:
        """After other weights took the place of the initial ones."""
        if self._average is not None:
            self._average.restart()

    def save(self, progress: Progress) -> Path:
        """Write a checkpoint at the current step, then remove those that need not be kept."""
        config = self._pipeline.config
        path = checkpoint.save(
            self._model_dir,
            progress.step,
            env=self._env,
            model=model_state(self.module),
            optimizer=self._optimizer_state(),
            trainer={
                **progress.as_json(),
                "train_metrics": self.train_metrics.state(self._env.sum),
            },
            config_text=configs.dump(config),
            manifest={
                **provenance(config, self._loader.fingerprint),
                "metrics": progress.evaluation.as_json() if progress.evaluation else None,
                "substitutions": configs.replaced(config),
            },
        )
        if self._env.is_main:
            best = (
                {progress.best["step"]}
                if progress.best and config.train_config.keep_best_checkpoint
                else set()
            )
            checkpoint.retain(
                self._model_dir, keep=config.train_config.keep_checkpoint_max, protected=best
            )
        return path

    def restore(self, progress: Progress, *, ignore_optimizer: bool) -> Position:
        """Go on from the newest checkpoint of model_dir, or start; where the reader continues.

        Raises ConfigError when the config changed in what decides the weights, UserError when the
        data did or a file is damaged.
        """
        config = self._pipeline.config
        if self._env.is_main:
            checkpoint.sweep(self._model_dir)
        found = self._env.broadcast(
            checkpoint.latest(self._model_dir) if self._env.is_main else None
        )
        start = Position(config.train_config.seed, 0, 0, self._loader.fingerprint)
        progress.position = start
        if found is None:
            if config.train_config.fine_tune_checkpoint:
                start_from(config.train_config, model_state(self.module))
                self.restart_average()
            return start
        checkpoint.verify(found)
        require_compatible(configs.load_pipeline(found.config_path), config, found.path.name)
        progress.load(found.trainer)
        if "train_metrics" in found.trainer:  # older checkpoints have none
            self.train_metrics.load(found.trainer["train_metrics"], rank=self._env.rank)
        if progress.position.fingerprint != self._loader.fingerprint:
            raise UserError(
                f"{found.path} was trained on other data than train_input_path has now "
                f"(fingerprint {progress.position.fingerprint} there, {self._loader.fingerprint} "
                "here): restore the files, or continue on new data with --fine_tune_checkpoint "
                "and another model_dir"
            )
        checkpoint.load_state(model_state(self.module), found.path / "model")
        if not ignore_optimizer:
            self._load_optimizers(found.path / "optimizer")
        LOGGER.info("resuming at step %d from %s", progress.step, found.path)
        return progress.position

    def _optimizer_state(self) -> dict[str, Any]:
        average = self._average.state() if self._average else {}
        return {**self._dense.state(), **self._sparse.state(), **average}

    def _load_optimizers(self, folder: Path) -> None:
        """Every tensor that the checkpoint has; torch makes dense state only at the first step."""
        sparse = self._sparse.state()
        average = self._average.state() if self._average else {}
        dense = {
            name: torch.zeros(shape, dtype=dtype)
            for name, (shape, dtype) in checkpoint.stored_tensors(folder).items()
            if name.startswith("dense.")
        }
        checkpoint.load_state({**dense, **sparse, **average}, folder)
        self._dense.load(dense)
        self._sparse.load(sparse)


def _sparse_spec(config: Any) -> OptimizerSpec:
    """The tables' optimizer; where there are none (validation has looked) any will do."""
    if config.sparse_optimizer.WhichOneof("optimizer") is None:
        return OptimizerSpec("sgd", lr=0.0)
    return optimizer_spec(config.sparse_optimizer)
