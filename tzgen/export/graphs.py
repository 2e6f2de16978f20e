# SPDX-License-Identifier: Apache-2.0
"""The dense part as a graph over group tensors: what AOTInductor compiles.

Tables stay outside: a graph takes what EmbeddingGroup gives. A dense group is one input
[B, width]; a ragged one is two, values [L, width] and lengths int64 [B].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tzgen.build import Pipeline
from tzgen.data.batch import Ragged
from tzgen.objectives import predictions

Groups = Mapping[str, Tensor | Ragged]


@dataclass(frozen=True)
class GraphInput:
    """One group: its name, whether rows differ in length, and the longest row it may have."""

    name: str
    ragged: bool
    max_len: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def inputs_of(groups: Groups, max_lens: Mapping[str, int]) -> tuple[GraphInput, ...]:
    """The inputs of a graph over these groups. `max_lens` is a bound for each ragged group."""
    return tuple(
        GraphInput(
            name, isinstance(value, Ragged), max_lens[name] if isinstance(value, Ragged) else 0
        )
        for name, value in groups.items()
    )


def flatten(groups: Groups, inputs: Sequence[GraphInput]) -> tuple[Tensor, ...]:
    """Groups as positional tensors, in the order of `inputs`."""
    flat: list[Tensor] = []
    for entry in inputs:
        value = groups[entry.name]
        flat.extend((value.values, value.lengths) if isinstance(value, Ragged) else (value,))
    return tuple(flat)


def unflatten(
    tensors: Sequence[Tensor], inputs: Sequence[GraphInput]
) -> dict[str, Tensor | Ragged]:
    """The inverse of `flatten`; each ragged group gets the constant bound as its max_len."""
    groups: dict[str, Tensor | Ragged] = {}
    rest = iter(tensors)
    for entry in inputs:
        values = next(rest)
        groups[entry.name] = Ragged(values, next(rest), entry.max_len) if entry.ragged else values
    return groups


class FullGraph(nn.Module):
    """Groups to predictions: the graph named `full`.

    `served`: by Model.predict, which may cut the work up, instead of by the forward, which is what
    is compiled. `output_names` are filled by the first call and say what each returned tensor is;
    `repeat`, the candidates per row, comes last where the model has candidates.
    """

    def __init__(
        self, pipeline: Pipeline, inputs: Sequence[GraphInput], *, served: bool = False
    ) -> None:
        super().__init__()
        self.head = pipeline.module.head
        self._served = served or pipeline.model.measures != "tasks"
        self.inputs = tuple(inputs)
        self._tasks = pipeline.tasks
        self.output_names: tuple[str, ...] = ()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = self.head.outputs(unflatten(tensors, self.inputs), predict=self._served)
        named = predictions(outputs, self._tasks)
        if outputs.repeat is not None:
            named = {**named, "repeat": outputs.repeat}
        self.output_names = tuple(named)
        return tuple(named.values())


def trace(graph: nn.Module, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """torch.export of a graph over flat tensors, with every row and token count dynamic.

    The example needs two rows and two tokens of everything: 0 and 1 are special to the tracer.
    """
    dynamic = torch.export.Dim.AUTO
    shapes = tuple({0: dynamic} for _ in example)
    with torch.no_grad():
        return torch.export.export(graph, example, dynamic_shapes={"tensors": shapes}, strict=False)
