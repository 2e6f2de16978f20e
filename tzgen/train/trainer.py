# SPDX-License-Identifier: Apache-2.0
"""The training loop: steps, cadences of evaluation and checkpoints, early stopping, a clean exit.

Everything that decides the weights is a function of (config, data, step), so a killed run that is
started again gives the same numbers as one that was never interrupted.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tzgen.build import Pipeline, StepOutput, num_tokens, open_loader
from tzgen.data.batch import Batch, Position
from tzgen.data.loader import BatchLoader
from tzgen.errors import UserError
from tzgen.log import LOGGER
from tzgen.train.cadence import Cadence
from tzgen.train.environment import Env, seed_step
from tzgen.train.evaluator import Evaluation, evaluate
from tzgen.train.progress import Progress
from tzgen.train.reporting import Reporter
from tzgen.train.state import RunState


class Trainer:
    """Trains one pipeline in one model_dir; `fit` resumes by itself."""

    def __init__(self, pipeline: Pipeline, env: Env, model_dir: Path) -> None:
        config = pipeline.config
        self.pipeline, self.env, self.model_dir = pipeline, env, model_dir
        self._config = config.train_config
        self.train_loader = open_loader(pipeline, config.train_input_path, env=env, mode="train")
        self.eval_loader: BatchLoader | None = None
        if config.eval_input_path:
            self.eval_loader = open_loader(pipeline, config.eval_input_path, env=env, mode="eval")
        self.state = RunState(pipeline, env, model_dir, self.train_loader)
        self.progress = Progress(config)
        self.cadence = Cadence(config.train_config, evaluates=self.eval_loader is not None)

    def fit(self, *, ignore_optimizer: bool = False) -> Evaluation | None:
        """Train until the configured end, early stopping or SIGTERM; the last evaluation."""
        position = self.state.restore(self.progress, ignore_optimizer=ignore_optimizer)
        total = self._total_steps()
        reporter = Reporter(
            self.model_dir,
            enabled=self.env.is_main,
            tensorboard=self._config.use_tensorboard,
            resumed_step=self.progress.step,
            total=total,
        )
        try:
            with _termination() as asked_to_stop:
                finished = self._run(position, reporter, asked_to_stop, total)
            if finished:
                self._finish(reporter)
            return self.progress.evaluation
        finally:
            reporter.close()

    def _run(
        self, position: Position, reporter: Reporter, asked: list[int], total: int | None
    ) -> bool:
        """All epochs from `position`; False when a signal ended them."""
        epoch = position.epoch
        while not self._is_over(epoch, total):
            batches = self.train_loader.epoch(position if position.epoch == epoch else None, epoch)
            while not self._is_over(epoch, total):
                output = self._step(batches, epoch)
                if output is None:
                    break
                self._after_step(output, reporter)
                if self.env.any(bool(asked)):
                    LOGGER.warning("signal %d: checkpoint at step %d, then exit", asked[0], self.progress.step)
                    self._save()
                    return False
            else:
                return True
            epoch += 1
            self.progress.position = Position(position.seed, epoch, 0, position.fingerprint)
            self._after_epoch(epoch, reporter)
        return True

    def _step(self, batches: Iterator[Batch], epoch: int) -> StepOutput | None:
        step = self.progress.step
        self.state.set_rates(step, epoch)
        seed_step(self._config.seed, step, self.env.rank)
        return self.state.stepper.progress(batches)

    def _after_step(self, output: StepOutput, reporter: Reporter) -> None:
        progress = self.progress
        progress.step += 1
        assert output.batch.position is not None, "the loader sets a position on each batch"
        progress.position = output.batch.position
        self.state.train_metrics.update(output.outputs, output.batch)
        self._require_finite(output)
        reporter.step(output.batch.num_rows * self.env.world_size, num_tokens(output.batch) * self.env.world_size)
        if self.cadence.logs(progress.step):
            self._log(output, reporter)
        self._act(
            self.cadence.evaluates_at(progress.step), self.cadence.saves_at(progress.step), reporter
        )

    def _after_epoch(self, epoch: int, reporter: Reporter) -> None:
        self._act(
            self.cadence.evaluates_after(epoch), self.cadence.saves_after(epoch), reporter
        )

    def _act(self, evaluates: bool, saves: bool, reporter: Reporter) -> None:
        if evaluates:
            self._evaluate(reporter)
        if saves:
            self._save()

    def _finish(self, reporter: Reporter) -> None:
        if self.eval_loader is not None and self.progress.evaluated_step != self.progress.step:
            self._evaluate(reporter)
        self._save()

    def _evaluate(self, reporter: Reporter) -> None:
        assert self.eval_loader is not None, "cadence evaluates only with an eval_input_path"
        self.state.stepper.pause()
        limit = self.pipeline.config.eval_config.num_steps or None
        with self.state.averaged_weights():
            evaluation = evaluate(
                self.pipeline, self.state.module, self.eval_loader, env=self.env, max_batches=limit
            )
        step = self.progress.step
        improved = self.progress.take(evaluation)
        reporter.record("eval", step, evaluation.metrics, num_rows=evaluation.num_rows)
        reporter.say(f"evaluation at step {step}{' (best so far)' if improved else ''}\n{evaluation.table()}")
        if improved:
            self._save()

    def _save(self) -> None:
        if self.progress.saved_step != self.progress.step:
            self.state.stepper.pause()
            self.state.save(self.progress)
            self.progress.saved_step = self.progress.step

    def _log(self, output: StepOutput, reporter: Reporter) -> None:
        values = {"loss": float(self.state.mean_loss(output))}
        values |= {f"loss_{name}": float(term.mean) for name, term in output.terms.items()}
        values |= self.state.train_metrics.compute(lambda value: [value])
        values |= {"learning_rate": self.state.dense_rate, "sparse_learning_rate": self.state.sparse_rate}
        if output.gradient_norm is not None:
            values["gradient_norm"] = float(output.gradient_norm)
        reporter.record("train", self.progress.step, values, epoch=self.progress.position.epoch)
        reporter.show({"loss": values["loss"], **reporter.rates()})

    def _require_finite(self, output: StepOutput) -> None:
        """Stop on a NaN or infinite loss, naming the batch. Raises UserError on every rank."""
        if self.env.device.type != "cpu" and not self.cadence.logs(self.progress.step):
            return  # reading the loss waits for the GPU: only where it is logged anyway
        bad = not math.isfinite(float(output.loss))
        if self.env.any(bad):
            source = output.batch.source
            rows = source.describe() if bad and source else "rows of another rank's batch"
            terms = {name: float(term.total) for name, term in output.terms.items()}
            raise UserError(
                f"step {self.progress.step}: the loss is {float(output.loss)} ({terms}) on {rows}. "
                "Look at these rows for extreme values, or lower the learning rate or clip gradients "
                f"(train_config.grad_clipping). The last good checkpoint is in {self.model_dir}."
            )

    def _is_over(self, epoch: int, total: int | None) -> bool:
        by_epoch = self._config.num_epochs and epoch >= self._config.num_epochs
        return bool(by_epoch) or (total is not None and self.progress.step >= total) or self.progress.stopped

    def _total_steps(self) -> int | None:
        if self._config.num_steps:
            return self._config.num_steps
        lengths = [self.train_loader.num_batches(epoch) for epoch in range(self._config.num_epochs)]
        known = [length for length in lengths if length is not None]
        return sum(known) if len(known) == len(lengths) else None


@contextmanager
def _termination() -> Iterator[list[int]]:
    """SIGTERM and SIGINT only leave a note; a second one acts as usual."""
    asked: list[int] = []
    previous = {}

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(number, previous[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        previous[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
