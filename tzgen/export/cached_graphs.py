# SPDX-License-Identifier: Apache-2.0
"""The graphs `encode`, `score` and `append` over flat tensors: what AOTInductor compiles.

    encode    history groups [, request_time]          -> cache
    score     candidate groups, cache                  -> logits
    append    history groups of new events, cache      -> cache of these events alone

A cache is contiguous ragged tensors, rows one after another: see `CacheLayout`. B rows, Lc cached
tokens of all rows, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tzgen.build import Pipeline
from tzgen.data.batch import Ragged
from tzgen.export.graphs import GraphInput, flatten, unflatten
from tzgen.models.dlrm_hstu import DlrmHSTU
from tzgen.modules.stu_cache import EncodedHistory
from tzgen.objectives import predictions
from tzgen.ops.hstu_attention_cached import CachedKV


@dataclass(frozen=True)
class CacheLayout:
    """Which tensors a cache is, in this order, and the constants beside them.

    lengths int64 [B]; query_time int64 [B] if `request_time`; contextual [B, C, Dx] if
    `contextual`; timestamps int64 [Lc] if `timestamps`; then for each layer k [Lc, H,
    attention_dim] and v [Lc, H, hidden_dim]. max_len: a bound of a row's tokens.
    """

    num_layers: int
    request_time: bool
    contextual: bool
    timestamps: bool
    max_len: int

    @classmethod
    def of(cls, model: DlrmHSTU, max_history: int) -> CacheLayout:
        stack, contextual_len = model.transducer.stack, model.channel.contextual[0]
        per_event = model.transducer.preprocessor.tokens_per_event
        return cls(
            num_layers=len(stack.layers),
            request_time=model.channel.needs_request_time,
            contextual=contextual_len > 0,
            timestamps=stack.cache_shape().timestamps,
            max_len=contextual_len + max_history * per_event,
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def names(self) -> tuple[str, ...]:
        optional = {
            "query_time": self.request_time,
            "contextual": self.contextual,
            "timestamps": self.timestamps,
        }
        layers = [f"{kind}.{i}" for i in range(self.num_layers) for kind in ("k", "v")]
        return ("lengths", *(name for name, there in optional.items() if there), *layers)

    def flatten(self, cache: EncodedHistory) -> tuple[Tensor, ...]:
        """The cache's tensors in the order of `names`."""
        given = {
            "lengths": cache.lengths,
            "query_time": cache.query_time,
            "contextual": cache.contextual,
            "timestamps": cache.layers[0].timestamps,
        }
        for index, layer in enumerate(cache.layers):
            given.update({f"k.{index}": layer.k, f"v.{index}": layer.v})
        flat = []
        for name in self.names:
            value = given[name]
            assert value is not None, f"the layout promises {name}, and the cache has none"
            flat.append(value)
        return tuple(flat)

    def unflatten(self, tensors: Sequence[Tensor], max_len: int | None = None) -> EncodedHistory:
        """The inverse; `max_len` None stands for the constant bound."""
        given = dict(zip(self.names, tensors, strict=True))
        lengths, bound = given["lengths"], self.max_len if max_len is None else max_len
        nothing = torch.zeros_like(lengths)
        return EncodedHistory(
            layers=tuple(
                CachedKV(
                    given[f"k.{index}"],
                    given[f"v.{index}"],
                    lengths,
                    bound,
                    timestamps=given.get("timestamps"),
                )
                for index in range(self.num_layers)
            ),
            lengths=lengths,
            query_time=given.get("query_time", nothing),
            newest=nothing,
            contextual=given.get("contextual"),
            max_len=bound,
        )


class CachedGraph(nn.Module):
    """Base: the model, the groups that the graph takes, and the cache's layout."""

    def __init__(
        self, pipeline: Pipeline, inputs: Sequence[GraphInput], layout: CacheLayout
    ) -> None:
        super().__init__()
        self.head = pipeline.module.head
        self.inputs, self.layout, self._tasks = tuple(inputs), layout, pipeline.tasks
        self.output_names: tuple[str, ...] = layout.names
        self._num_groups = sum(2 if entry.ragged else 1 for entry in inputs)

    @property
    def model(self) -> DlrmHSTU:
        model = self.head.model
        assert isinstance(model, DlrmHSTU), "only a model with caches has these graphs"
        return model

    def groups(self, tensors: Sequence[Tensor]) -> dict[str, Tensor | Ragged]:
        return unflatten(tensors[: self._num_groups], self.inputs)

    def rest(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors[self._num_groups :]


class EncodeGraph(CachedGraph):
    """Groups, and request_time int64 [B] where the layout has it, to a cache."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        request_time = self.rest(tensors)[0] if self.layout.request_time else None
        with self.head.autocast(tensors[0].device):
            cache = self.model.encode(self.groups(tensors), request_time)
        return _own(self.layout.flatten(cache))


class ScoreGraph(CachedGraph):
    """Candidate groups and a cache to named predictions."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        cache = self.layout.unflatten(self.rest(tensors))
        with self.head.autocast(tensors[0].device):
            events = self.model.channel.candidates(self.groups(tensors))
            states = self.model.transducer.score(events, cache)
            outputs = self.model.outputs_of(events, states).map(Tensor.float)
        named = predictions(outputs, self._tasks)
        self.output_names = tuple(named)
        return tuple(named.values())


class AppendGraph(CachedGraph):
    """Groups of new events and a cache to the cache of these events."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        cache = self.layout.unflatten(self.rest(tensors))
        groups = self.groups(tensors)
        if cache.contextual is not None:
            groups["contextual"] = cache.contextual.flatten(1)
        with self.head.autocast(tensors[0].device):
            events = self.model.channel.history(groups, cache.query_time)
            new = self.model.transducer.append(events, cache)
        return _own(self.layout.flatten(new))


GRAPHS: dict[str, type[CachedGraph]] = {
    "encode": EncodeGraph,
    "score": ScoreGraph,
    "append": AppendGraph,
}


@dataclass(frozen=True)
class TracedGraph:
    """A graph with tensors to trace it with."""

    graph: CachedGraph
    example: tuple[Tensor, ...]

    def as_json(self) -> dict[str, Any]:
        """Which groups come first, then what else, and what comes out."""
        layout, name = self.graph.layout, type(self.graph)
        rest = layout.names if name is not EncodeGraph else ("request_time",) * layout.request_time
        return {
            "inputs": [entry.as_json() for entry in self.graph.inputs],
            "then": list(rest),
            "outputs": list(self.graph.output_names),
        }


def make_graphs(
    pipeline: Pipeline,
    model: DlrmHSTU,
    groups: Mapping[str, Tensor | Ragged],
    inputs: Sequence[GraphInput],
) -> dict[str, TracedGraph]:
    """encode, score and, of append-stable models, append, each with an example made of `groups`."""
    history = [entry for entry in inputs if not entry.name.startswith("candidate")]
    parts = {
        "encode": history,
        "score": [entry for entry in inputs if entry.name.startswith("candidate")],
        "append": [entry for entry in history if entry.name != "contextual"],
    }
    bound = next(entry.max_len for entry in inputs if entry.name == model.channel.name)
    layout = CacheLayout.of(model, bound)
    made: dict[str, TracedGraph] = {}
    cache: tuple[Tensor, ...] = ()
    for name, kind in GRAPHS.items():
        if name == "append" and model.append_refusals:
            continue
        graph = kind(pipeline, parts[name], layout).eval()
        given = flatten(groups, graph.inputs)
        if name != "encode":
            given = (*given, *cache)
        elif layout.request_time:
            given = (*given, model.events(dict(groups)).query_time)
        with torch.no_grad():
            results = graph(*given)  # names the outputs
        cache = results if name == "encode" else cache
        made[name] = TracedGraph(graph, given)
    return made


def _own(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Outputs that share no memory with inputs (request_time, timestamps)."""
    return tuple(tensor.clone() for tensor in tensors)
