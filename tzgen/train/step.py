# SPDX-License-Identifier: Apache-2.0
"""One training step, in two forms that compute the same numbers.

DirectStep runs lookup, model and backward one after the other, in micro-batches where asked;
PipelinedStep hands the loop to TorchRec's TrainPipelineSparseDist, which overlaps the next batch's
input distribution with this batch's computation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from tzgen.build import StepOutput, TrainModule, concatenate, unwrap
from tzgen.data.batch import Batch
from tzgen.embeddings import DetachedGroups
from tzgen.models.base import Outputs
from tzgen.train.environment import Env
from tzgen.train.micro import split_labels
from tzgen.train.optimizers import Average, DenseOptimizer, clip


class Stepper(Protocol):
    """Trains on batches one at a time."""

    def progress(self, batches: Iterator[Batch]) -> StepOutput | None:
        """Train on the next batch; None when there is none left."""
        ...

    def pause(self) -> None:
        """Leave the module usable for evaluation and for reading its state."""
        ...


class Updater:
    """The dense half of an update: gradients averaged over ranks, clipped, applied; then what the
    model does after a step (Model.end_step); then averages.

    Shaped like an optimizer (`zero_grad`, `step`), which is how TorchRec's pipeline calls it.
    """

    def __init__(
        self,
        dense: DenseOptimizer,
        *,
        env: Env,
        clipping: Any | None,
        average: Average | None,
        end_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._dense, self._env, self._end_step = dense, env, end_step
        self._clipping, self._average = clipping, average
        self.gradient_norm: Tensor | None = None

    def zero_grad(self) -> None:
        self._dense.zero_grad()

    def step(self) -> None:
        parameters = list(self._dense.parameters.values())
        self._mean_over_ranks(parameters)
        if self._clipping is not None:
            self.gradient_norm = clip(parameters, self._clipping)
        self._dense.step()
        self._end_step()
        if self._average is not None:
            self._average.update()

    def _mean_over_ranks(self, parameters: list[nn.Parameter]) -> None:
        """One all-reduce for all dense gradients; a rank without rows contributes zeros."""
        if self._env.world_size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self._env.sum(_flatten_dense_tensors(gradients)) / self._env.world_size
        for gradient, mean in zip(
            gradients, _unflatten_dense_tensors(flat, gradients), strict=True
        ):
            gradient.copy_(mean)


class DirectStep:
    """Lookup, `micro_batches` forwards and backwards, one backward through the lookup, one update.

    The tables see the gradient of the whole batch once: a fused optimizer steps once a batch.
    """

    def __init__(self, module: Any, updater: Updater, *, env: Env, micro_batches: int = 1) -> None:
        self._module, self._updater, self._env = module, updater, env
        self._parts: TrainModule = unwrap(module)
        self._micro_batches = micro_batches

    def progress(self, batches: Iterator[Batch]) -> StepOutput | None:
        batch = next(batches, None)
        if batch is None:
            return None
        batch = batch.to(self._env.device, non_blocking=True)
        self._updater.zero_grad()
        if self._micro_batches == 1:
            loss, output = self._module(batch)
            loss.backward()
        else:
            output = self._accumulate(batch)
        self._updater.step()
        return replace(output, gradient_norm=self._updater.gradient_norm)

    def pause(self) -> None:
        """Nothing is in flight between two steps."""

    def _accumulate(self, batch: Batch) -> StepOutput:
        detached = DetachedGroups(self._parts.embeddings(batch), self._micro_batches)
        counts = self._parts.head.counts(batch)
        outputs: list[StepOutput] = []
        for groups, labels in zip(
            detached.micro, split_labels(batch, self._micro_batches), strict=True
        ):
            loss, output = self._parts.head(groups, labels, counts)
            loss.backward()
            outputs.append(output)
        detached.backward()
        return concatenate(outputs, batch)


class ObserveStep:
    """For models that are fitted (Model.fits): a batch is looked at, nothing is updated."""

    def __init__(self, module: Any, *, env: Env) -> None:
        self._parts, self._env = unwrap(module), env

    def progress(self, batches: Iterator[Batch]) -> StepOutput | None:
        batch = next(batches, None)
        if batch is None:
            return None
        batch = batch.to(self._env.device, non_blocking=True)
        with torch.no_grad():
            self._parts.head.model.observe(self._parts.embeddings(batch))
        return StepOutput(torch.zeros(()), {}, Outputs({}), batch)

    def pause(self) -> None:
        """Nothing is in flight between two steps."""


class PipelinedStep:
    """TorchRec's sparse-dist pipeline around the same module and updater."""

    def __init__(self, module: nn.Module, updater: Updater, *, env: Env) -> None:
        from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

        self._updater = updater
        self._pipeline = TrainPipelineSparseDist(
            model=module, optimizer=updater, device=env.device, execute_all_batches=True
        )

    @property
    def num_pipelined(self) -> int:
        """How many sharded modules have their input distribution overlapped."""
        return len(self._pipeline._pipelined_modules)

    def progress(self, batches: Iterator[Batch]) -> StepOutput | None:
        try:
            output: StepOutput = self._pipeline.progress(batches)
        except StopIteration:
            return None
        return replace(output, gradient_norm=self._updater.gradient_norm)

    def pause(self) -> None:
        self._pipeline.detach()
