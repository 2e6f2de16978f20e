# SPDX-License-Identifier: Apache-2.0
"""One batch through reader, parser, tables, model, losses and backward. Nothing is kept.

The pipeline is the one that training builds, with tables cut to the ids of the batch (compact.py)
and the local engine.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tzgen.build import Pipeline, StepOutput, TrainModule, build_model, build_pipeline
from tzgen.checking.compact import compact
from tzgen.checking.flops import flop_counter
from tzgen.checking.rows import affordable, first_batch, opened
from tzgen.data.batch import Batch
from tzgen.embeddings import EmbeddingGroup, Groups, dense_parameters
from tzgen.embeddings.plan import Plan
from tzgen.log import LOGGER
from tzgen.modules.stu import STULayer
from tzgen.modules.transducer import HSTUTransducer

META = torch.device("meta")
MODEL = "head.model."
Flops = Mapping[str, Mapping[Any, int]]


@dataclass(frozen=True)
class Attended:
    """What the first layer of a transducer was given: tokens and candidates of each row, int64 [B];
    times of the tokens, int64 [L]."""

    lengths: Tensor
    num_targets: Tensor
    timestamps: Tensor | None


@dataclass
class DryRun:
    """Everything the report tells of one batch.

    batch, rows: as read, before ids were renumbered; `tried` of its rows went through the model.
    flops: path of a module in `module` -> op -> count, of a forward over `tried` rows, losses left
    out; "Global" is everything. saved_bytes: what that forward keeps for backward. silent:
    parameters without a gradient.
    """

    pipeline: Pipeline
    module: TrainModule
    plan: Plan
    told: tuple[tuple[str, str], ...]
    synthetic: bool
    batch: Batch
    tried: int
    groups: Groups
    output: StepOutput
    flops: Flops
    saved_bytes: int
    silent: tuple[str, ...]
    attended: dict[str, Attended] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def unsound(self) -> list[str]:
        """What must not be trained: losses and gradients that are no numbers."""
        found = [
            f"loss {name} is {float(term.total)}"
            for name, term in self.output.terms.items()
            if not math.isfinite(float(term.total))
        ]
        for name, parameter in self.module.named_parameters():
            if parameter.grad is not None and not bool(_values(parameter.grad).isfinite().all()):
                found.append(f"the gradient of {name} is not finite")
        return found


def dry_run(config: Any, *, synthetic: bool, device: torch.device, source: str) -> DryRun:
    """Raises UserError when the rows cannot be read or do not fit the config."""
    with _heard() as warnings:
        pipeline = build_pipeline(config, device=META, engine="local", source=source)
        with opened(pipeline, synthetic=synthetic) as rows:
            batch = first_batch(pipeline, rows, rows.batch_size)
            tried = affordable(batch)
            small = batch if tried == batch.num_rows else first_batch(pipeline, rows, tried)
            told, is_synthetic = rows.told, rows.synthetic
        features, small = compact(pipeline.features, small)
        module = _module(pipeline, features, device)
        found = _forward_and_backward(module, small.to(device))
    plan = pipeline.module.embeddings.plan
    return DryRun(
        pipeline, module, plan, told, is_synthetic, batch, tried, *found, warnings=tuple(warnings)
    )


def _module(pipeline: Pipeline, features: Any, device: torch.device) -> TrainModule:
    """The pipeline's module on `device`, its tables as small as `features` says."""
    config = pipeline.config
    embeddings = EmbeddingGroup(
        features,
        config.model_config.feature_groups,
        engine="local",
        pointwise=pipeline.model.pointwise,
        device=device,
        seed=config.train_config.seed,
    )
    head = pipeline.module.head
    head.model = build_model(config, embeddings.widths, pipeline.tasks).to(device)
    return TrainModule(embeddings, head).train()


def _forward_and_backward(
    module: TrainModule, batch: Batch
) -> tuple[Groups, StepOutput, Flops, int, tuple[str, ...], dict[str, Attended]]:
    with _watched(module) as attended:
        groups, flops = _counted_forward(module, batch)
    kept = {p.untyped_storage().data_ptr() for p in module.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss, output = module(batch)
    if loss.requires_grad:
        loss.backward()
    silent = tuple(
        name for name, p in dense_parameters(module) if p.requires_grad and p.grad is None
    )
    return groups, output, flops, sum(saved.values()), silent, attended


def _counted_forward(module: TrainModule, batch: Batch) -> tuple[Groups, Flops]:
    """Groups, and the FLOPs of tables and model; the losses of some configs run a backward.

    With gradients, although nobody uses them: torch's module tracker trips over no_grad."""
    with flop_counter() as counter:
        groups: Groups = module.embeddings(batch)
        module.head.outputs(groups)
    # the counter calls a module that nobody called by the name of its class
    roots = {
        type(module.embeddings).__name__: "embeddings",
        type(module.head.model).__name__: "head.model",
    }
    flops = {}
    for name, counts in counter.get_flop_counts().items():
        root, *rest = name.split(".")
        flops[".".join([roots.get(root, root), *rest])] = counts
    return groups, flops


@contextmanager
def _watched(module: nn.Module) -> Iterator[dict[str, Attended]]:
    """What each transducer's first layer is called with, by the transducer's name."""
    found: dict[str, Attended] = {}
    hooks = []

    def watch(name: str, layer: STULayer) -> None:
        def note(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            lengths = torch.diff(args[1]).cpu()
            targets = named.get("num_targets")
            times = named.get("timestamps")
            found[name] = Attended(
                lengths,
                torch.zeros_like(lengths) if targets is None else targets.cpu(),
                None if times is None else times.cpu(),
            )

        hooks.append(layer.register_forward_pre_hook(note, with_kwargs=True))

    for name, transducer in transducers(module).items():
        watch(name, transducer.stack.layers[0])  # type: ignore[arg-type]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def transducers(module: nn.Module) -> dict[str, HSTUTransducer]:
    """Every HSTU in a module, by name; {} for models without attention of that kind."""
    return {n: m for n, m in module.named_modules() if isinstance(m, HSTUTransducer)}


def shown_name(name: str, transducer: HSTUTransducer) -> str:
    """What a report calls a transducer: its channel where it has a name, else its place."""
    return f"channel {transducer.channel}" if transducer.channel else name.removeprefix(MODEL)


class _Collector(logging.Handler):
    def __init__(self, into: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._into = into

    def emit(self, record: logging.LogRecord) -> None:
        told = record.getMessage()
        if told not in self._into:
            self._into.append(told)


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Warnings of the project while inside, once each, instead of on stderr."""
    found: list[str] = []
    collector = _Collector(found)
    before, propagated = LOGGER.handlers[:], LOGGER.propagate
    LOGGER.handlers[:], LOGGER.propagate = [collector], False
    try:
        yield found
    finally:
        LOGGER.handlers[:], LOGGER.propagate = before, propagated


def _values(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient
