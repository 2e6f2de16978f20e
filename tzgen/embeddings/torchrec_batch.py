# SPDX-License-Identifier: Apache-2.0
"""The batch of the torchrec engine: KeyedJaggedTensors built in the loader worker, left untouched.

TrainPipelineSparseDist pipelines a collection only if its input is an attribute path of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from tzgen.data.batch import Batch, Ids, Source
from tzgen.embeddings.batches import CheckedParse
from tzgen.embeddings.layout import Collection
from tzgen.embeddings.tables import ids_of, row_lengths


@dataclass
class EmbeddingBatch(Batch, Pipelineable):
    """A Batch with one KeyedJaggedTensor a collection. A batch without rows has one empty row
    there: TorchRec cannot reshape nothing."""

    kjts: dict[str, KeyedJaggedTensor] = field(default_factory=dict)

    def map(self, move: Callable[[Tensor], Tensor]) -> EmbeddingBatch:
        moved = super().map(move)
        assert isinstance(moved, EmbeddingBatch), "Batch.map keeps the type"
        moved.kjts = {name: _move(kjt, move) for name, kjt in self.kjts.items()}
        return moved

    def record_stream(self, stream: torch.Stream) -> None:
        super().record_stream(stream)
        for kjt in self.kjts.values():  # also what it has cached: offsets
            kjt.record_stream(stream)


@dataclass(frozen=True)
class KjtParse:
    """A checked parser that adds the KJTs. Picklable, as loader workers need."""

    parse: CheckedParse
    collections: tuple[Collection, ...]

    def __call__(self, rows: Any, source: Source) -> EmbeddingBatch:
        return attach(self.parse(rows, source), self.collections)


def attach(batch: Batch, collections: Sequence[Collection]) -> EmbeddingBatch:
    """The same batch (tensors shared) with its KJTs."""
    kept = {f.name: getattr(batch, f.name) for f in fields(Batch)}
    kjts = {collection.name: _kjt(batch, collection) for collection in collections}
    return EmbeddingBatch(**kept, kjts=kjts)


def _kjt(batch: Batch, collection: Collection) -> KeyedJaggedTensor:
    found = [ids_of(batch, feature) for _, feature in collection.keys]
    lengths = [row_lengths(ids) if batch.num_rows else _one_empty_row(ids) for ids in found]
    weights = torch.cat([_weights(ids) for ids in found]) if collection.weighted else None
    return KeyedJaggedTensor(
        keys=[key for key, _ in collection.keys],
        values=torch.cat([ids.values for ids in found]),
        lengths=torch.cat(lengths),
        weights=weights,
    )


def _one_empty_row(ids: Ids) -> Tensor:
    return ids.lengths.new_zeros(1)


def _weights(ids: Ids) -> Tensor:
    if ids.weights is not None:
        return ids.weights
    return torch.ones(ids.values.size(0), device=ids.values.device)


def _move(kjt: KeyedJaggedTensor, move: Callable[[Tensor], Tensor]) -> KeyedJaggedTensor:
    weights = kjt.weights_or_none()
    return KeyedJaggedTensor(
        keys=kjt.keys(),
        values=move(kjt.values()),
        lengths=move(kjt.lengths()),
        weights=None if weights is None else move(weights),
    )
