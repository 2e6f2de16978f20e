# SPDX-License-Identifier: Apache-2.0
"""Encode, score and append by a package: with its compiled graphs, or with its rebuilt modules.

Both do what DlrmHSTU does, checks included. B rows, T candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from tzgen.build import Pipeline
from tzgen.data.batch import Ragged
from tzgen.errors import UserError
from tzgen.export.cached_graphs import CacheLayout
from tzgen.export.graphs import GraphInput, flatten
from tzgen.models.base import Model
from tzgen.models.dlrm_hstu import DlrmHSTU
from tzgen.modules.sequence import Events
from tzgen.modules.stu_cache import EncodedHistory, gathered, newest_time
from tzgen.objectives import predictions

Groups = Mapping[str, Tensor | Ragged]
Graph = Callable[..., Sequence[Tensor]]


class Cached(Protocol):
    """What LoadedPackage.encode, .score and .append run."""

    def encode(self, groups: Groups, request_time: Tensor | None) -> EncodedHistory: ...

    def score(self, groups: Groups, cache: EncodedHistory) -> dict[str, Tensor]: ...

    def append(self, groups: Groups, cache: EncodedHistory) -> EncodedHistory: ...


def cached_model(model: Model) -> DlrmHSTU | None:
    """The model, if it is one that encodes histories apart from candidates."""
    return model if isinstance(model, DlrmHSTU) else None


class EagerCached:
    """By the modules; caches may lie in pages."""

    def __init__(self, pipeline: Pipeline, model: DlrmHSTU) -> None:
        self._head, self._tasks, self._model = pipeline.module.head, pipeline.tasks, model

    def encode(self, groups: Groups, request_time: Tensor | None) -> EncodedHistory:
        with self._head.autocast(_device(groups)):
            return self._model.encode(dict(groups), request_time)

    def score(self, groups: Groups, cache: EncodedHistory) -> dict[str, Tensor]:
        with self._head.autocast(_device(groups)):
            outputs = self._model.score(dict(groups), cache)
        return predictions(outputs.map(Tensor.float), self._tasks)

    def append(self, groups: Groups, cache: EncodedHistory) -> EncodedHistory:
        with self._head.autocast(_device(groups)):
            return self._model.append(dict(groups), cache)


class CompiledCached:
    """By compiled graphs, which take contiguous caches; pages are gathered first.

    `model` has the package's shape and not its weights: it reads groups and checks. `inputs` and
    `outputs` are by graph name; `graph` gives a graph by name.
    """

    def __init__(
        self,
        model: DlrmHSTU,
        layout: CacheLayout,
        *,
        inputs: Mapping[str, Sequence[GraphInput]],
        outputs: Mapping[str, Sequence[str]],
        graph: Callable[[str], Graph],
    ) -> None:
        self._model, self._layout = model, layout
        self._inputs, self._outputs, self._graph = inputs, outputs, graph

    def encode(self, groups: Groups, request_time: Tensor | None) -> EncodedHistory:
        events = self._model.channel.history(dict(groups), request_time)
        given = list(flatten(groups, self._inputs["encode"]))
        if self._layout.request_time:
            given.append(events.query_time)
        longest = self._model.channel.contextual[0] + self._tokens(events)
        cache = self._layout.unflatten(self._graph("encode")(*given), longest)
        return replace(cache, newest=newest_time(events, torch.zeros_like(cache.lengths)))

    def score(self, groups: Groups, cache: EncodedHistory) -> dict[str, Tensor]:
        self._model.scored_events(dict(groups), cache)
        given = flatten(groups, self._inputs["score"])
        results = self._graph("score")(*given, *self._flat(cache, 0))
        return dict(zip(self._outputs["score"], results, strict=True))

    def append(self, groups: Groups, cache: EncodedHistory) -> EncodedHistory:
        events = self._model.appended_events(dict(groups), cache)
        given, new = flatten(groups, self._inputs["append"]), self._tokens(events)
        results = self._graph("append")(*given, *self._flat(cache, new))
        delta = self._layout.unflatten(results, new)
        return replace(delta, newest=newest_time(events, cache.newest))

    def _tokens(self, events: Events) -> int:
        """The most history tokens of a row."""
        return events.max_uih_len * self._model.transducer.preprocessor.tokens_per_event

    def _flat(self, cache: EncodedHistory, more: int) -> tuple[Tensor, ...]:
        if cache.max_len + more > self._layout.max_len:
            raise UserError(
                f"rows of up to {cache.max_len + more} tokens, and the package was compiled for "
                f"{self._layout.max_len}: encode shorter histories, or export with a larger "
                "max_seq_len"
            )
        layers = tuple(gathered(layer) for layer in cache.layers)
        return self._layout.flatten(replace(cache, layers=layers))


def _device(groups: Groups) -> torch.device:
    value = next(iter(groups.values()))
    return value.values.device if isinstance(value, Ragged) else value.device
