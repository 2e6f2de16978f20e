# SPDX-License-Identifier: Apache-2.0
"""The training loop: steps, cadences of evaluation and checkpoints, early stopping, a clean exit.

Everything that decides the weights is a function of (config, data, step), so a killed run that is
started again gives the same numbers as one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from tzgen.build import Pipeline, StepOutput, num_tokens, open_loader, unwrap
from tzgen.data.batch import Batch, Position
from tzgen.data.loader import BatchLoader
from tzgen.errors import UserError
from tzgen.log import LOGGER
from tzgen.train.cadence import Cadence
from tzgen.train.environment import Env, seed_step
from tzgen.train.evaluator import Evaluation, evaluate, evaluated_names
from tzgen.train.finite import LossWatch
from tzgen.train.progress import Progress
from tzgen.train.reporting import Reporter
from tzgen.train.state import RunState


class Trainer:
    """Trains one pipeline in one model_dir; `fit` resumes by itself.

    `interrupted_by` is the signal that ended `fit`, None where it came to its end. `evaluated` says
    whether an evaluation was shown.
    """

    def __init__(self, pipeline: Pipeline, env: Env, model_dir: Path) -> None:
        config = pipeline.config
        self.pipeline, self.env, self.model_dir = pipeline, env, model_dir
        self._config = config.train_config
        self.train_loader = open_loader(pipeline, config.train_input_path, env=env, mode="train")
        self.eval_loader: BatchLoader | None = None
        if config.eval_input_path:
            self.eval_loader = open_loader(pipeline, config.eval_input_path, env=env, mode="eval")
        self.progress = Progress(config)
        self.progress.require_metrics(evaluated_names(pipeline) if self.eval_loader else ())
        self.state = RunState(pipeline, env, model_dir, self.train_loader)
        self.cadence = Cadence(
            config.train_config,
            evaluates=self.eval_loader is not None,
            only_at_end=pipeline.model.fits,
        )
        self.losses = LossWatch(env, model_dir)
        self.interrupted_by: int | None = None
        self.evaluated = False

    def fit(self, *, ignore_optimizer: bool = False) -> Evaluation | None:
        """Train until the configured end, early stopping or SIGTERM; the last evaluation."""
        position = self.state.restore(self.progress, ignore_optimizer=ignore_optimizer)
        reporter = Reporter(
            self.model_dir,
            enabled=self.env.is_main,
            tensorboard=self._config.use_tensorboard,
            resumed_step=self.progress.step,
            total=self._last_step(position),
        )
        try:
            resumed_at = self.progress.step
            tuned = self.pipeline.config.train_config.fine_tune_checkpoint
            if resumed_at == 0 and self.pipeline.model.start_rows and not tuned:
                self._prepare(position)
            with _termination() as asked:
                self._run(position, reporter, asked)
            if self.interrupted_by is None:
                if self.pipeline.model.fits and self.progress.step > resumed_at:
                    self.pipeline.model.fit()
                self._finish(reporter)
            return self.progress.evaluation
        finally:
            reporter.close()

    def _prepare(self, position: Position) -> None:
        """Let the model initialise itself from the first rows of the training data. Not where
        weights of another run were taken: they would be lost."""
        parts, model = unwrap(self.state.module), self.pipeline.model
        left = -(-model.start_rows // self.env.world_size)
        groups = []
        batches: Any = self.train_loader.epoch(position, 0)
        with torch.no_grad(), contextlib.closing(batches):
            for batch in batches:
                groups.append(parts.embeddings(batch.to(self.env.device)))
                left -= batch.num_rows
                if left <= 0:
                    break
        LOGGER.info("initialising from %d batches of this process", len(groups))
        model.prepare(iter(groups))
        self.state.restart_average()

    def _run(self, position: Position, reporter: Reporter, asked: list[int]) -> None:
        """All epochs from `position`."""
        epoch = position.epoch
        while not self._is_over(epoch):
            start = (
                position if position.epoch == epoch else replace(position, epoch=epoch, next_row=0)
            )
            if not self._run_epoch(start, reporter, asked):
                return
            epoch += 1
            self.progress.position = replace(position, epoch=epoch, next_row=0)
            self._act(
                self.cadence.evaluates_after(epoch), self.cadence.saves_after(epoch), reporter
            )

    def _run_epoch(self, start: Position, reporter: Reporter, asked: list[int]) -> bool:
        """The steps of an epoch from `start`; False when the run ends before the epoch does."""
        before = self.progress.step
        with contextlib.ExitStack() as undo:
            batches: Any = self.train_loader.epoch(start, start.epoch)
            undo.callback(batches.close)  # ends the loader's processes
            while not self._is_over(start.epoch):
                output = self._step(batches, start.epoch)
                if output is None:
                    if start.next_row == 0 and self.progress.step == before:
                        raise UserError(
                            f"epoch {start.epoch} of {self.pipeline.config.train_input_path} "
                            "gave no batch: lower data_config.batch_size, unset "
                            "drop_remainder, or give more rows"
                        )
                    return True
                self._after_step(output, reporter)
                if self.env.any(bool(asked)):
                    self._interrupt(asked[0] if asked else signal.SIGTERM)
                    return False
        return False

    def _step(self, batches: Iterator[Batch], epoch: int) -> StepOutput | None:
        step = self.progress.step
        self.state.set_rates(step, epoch)
        seed_step(self._config.seed, step, self.env.rank)
        return self.state.stepper.progress(batches)

    def _after_step(self, output: StepOutput, reporter: Reporter) -> None:
        progress, ranks = self.progress, self.env.world_size
        progress.step += 1
        assert output.batch.position is not None, "the loader sets a position on each batch"
        progress.position = output.batch.position
        self.losses.add(progress.step, output)
        if self.env.device.type == "cpu" or self.cadence.logs(progress.step):
            self.losses.check()
            reporter.show({"loss": self.losses.latest})
        self.state.train_metrics.update(output.outputs, output.batch, self.env.sum)
        reporter.step(output.batch.num_rows * ranks, num_tokens(output.batch) * ranks)
        if self.cadence.logs(progress.step):
            self._log(output, reporter)
        self._act(
            self.cadence.evaluates_at(progress.step), self.cadence.saves_at(progress.step), reporter
        )

    def _act(self, evaluates: bool, saves: bool, reporter: Reporter) -> None:
        """Evaluate before saving, so that the checkpoint knows; neither twice at one step."""
        if evaluates and self.progress.evaluated_step != self.progress.step:
            self._evaluate(reporter)
        if saves:
            self._save()
        reporter.resume()

    def _finish(self, reporter: Reporter) -> None:
        self._act(self.eval_loader is not None, True, reporter)

    def _interrupt(self, number: int) -> None:
        self.interrupted_by = number
        if self.pipeline.model.fits:
            name = signal.Signals(number).name
            LOGGER.warning("%s: stopped before the fit; the same command starts again", name)
            return
        self._save()
        LOGGER.warning(
            "%s: saved at step %d and stopped; the same command goes on from there",
            signal.Signals(number).name,
            self.progress.step,
        )

    def _evaluate(self, reporter: Reporter) -> None:
        assert self.eval_loader is not None, "cadence evaluates only with an eval_input_path"
        self.losses.check()
        self.state.stepper.pause()
        limit = self.pipeline.config.eval_config.num_steps or None
        with self.state.averaged_weights():
            evaluation = evaluate(
                self.pipeline, self.state.module, self.eval_loader, env=self.env, max_batches=limit
            )
        step, self.evaluated = self.progress.step, True
        improved = self.progress.take(evaluation)
        reporter.record("eval", step, evaluation.metrics, num_rows=evaluation.num_rows)
        best = " (best so far)" if improved else ""
        reporter.say(
            f"evaluation at step {step} on {evaluation.num_rows} rows{best}\n{evaluation.table()}"
        )
        if improved:
            self._save()

    def _save(self) -> None:
        if self.progress.saved_step != self.progress.step:
            self.losses.check()
            self.state.stepper.pause()
            self.state.save(self.progress)
            self.progress.saved_step = self.progress.step

    def _log(self, output: StepOutput, reporter: Reporter) -> None:
        values = self.state.mean_losses(output)
        values |= self.state.train_metrics.compute()
        values["learning_rate"] = self.state.dense_rate
        values["sparse_learning_rate"] = self.state.sparse_rate
        if output.gradient_norm is not None:
            values["gradient_norm"] = float(output.gradient_norm)
        epoch = self.progress.position.epoch
        reporter.record("train", self.progress.step, {**values, **reporter.rates()}, epoch=epoch)

    def _is_over(self, epoch: int) -> bool:
        by_epoch = bool(self._config.num_epochs) and epoch >= self._config.num_epochs
        by_step = bool(self._config.num_steps) and self.progress.step >= self._config.num_steps
        return by_epoch or by_step or self.progress.stopped

    def _last_step(self, start: Position) -> int:
        """The step that a run from `start` ends at, early stopping apart."""
        if self._config.num_steps:
            return int(self._config.num_steps)
        left = 0
        for epoch in range(start.epoch, self._config.num_epochs):
            left += self.train_loader.num_batches(epoch, start if epoch == start.epoch else None)
        return self.progress.step + left


@contextmanager
def _termination() -> Iterator[list[int]]:
    """SIGTERM and SIGINT only leave a note; a second one acts as usual."""
    asked: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(number, previous[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        previous[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for asked_for, handler in previous.items():
            signal.signal(asked_for, handler)
