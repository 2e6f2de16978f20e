# SPDX-License-Identifier: Apache-2.0
"""The torchrec engine: sharded collections with fused optimizers.

Collections are made on the meta device; `sharding.shard` allocates and fills them.
T ids, B rows, L steps, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
)
from torchrec.distributed.types import Awaitable
from torchrec.modules.embedding_configs import DataType, PoolingType

from tzgen.data.batch import Batch
from tzgen.embeddings.layout import Collection, collections_of, kjt_key
from tzgen.embeddings.plan import Lookup, Plan
from tzgen.embeddings.tables import EmbeddingTables, bags_of, ids_of, mean_of_sums


class TorchrecTables(EmbeddingTables):
    """One TorchRec collection for each entry of `layout`.

    `forward` is traced by torch.fx: it only takes KJTs off the batch and calls collections; what
    needs Python is in `unpack`, a leaf.
    """

    def __init__(self, plan: Plan, *, seed: int) -> None:
        super().__init__(plan.tables, seed)
        self.layout = collections_of(plan)
        self.collections = nn.ModuleDict({one.name: _collection(one, plan) for one in self.layout})
        self.unpack = Unpack(plan, self.layout)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        kjts = batch.kjts  # type: ignore[attr-defined]  # an EmbeddingBatch, or a proxy of one
        outputs = [collection(kjts[name]) for name, collection in self.collections.items()]
        vectors: dict[str, Tensor] = self.unpack(batch, outputs)
        return vectors

    def named_weights(self) -> Iterator[tuple[str, Any]]:
        for key, tensor in self.collections.state_dict().items():
            yield table_of(key), tensor


class Unpack(nn.Module):
    """Outputs of the collections -> {Lookup.key: float32 [B or L, D]}."""

    def __init__(self, plan: Plan, layout: Sequence[Collection]) -> None:
        super().__init__()
        self.layout = tuple(layout)
        self.lookups: Mapping[str, Lookup] = plan.lookups
        self.frozen = {name for name, spec in plan.tables.items() if not spec.trainable}

    def forward(self, batch: Batch, outputs: Sequence[Any]) -> dict[str, Tensor]:
        vectors = {}
        for collection, output in zip(self.layout, outputs, strict=True):
            whole = output.wait() if isinstance(output, Awaitable) else output
            # by key: the order of KeyedTensor.values() depends on the sharding plan
            found = whole.to_dict() if collection.pooled else whole
            for key in collection.lookups:
                lookup = self.lookups[key]
                value = found[kjt_key(lookup.feature, lookup.table)]
                ids = ids_of(batch, lookup.feature)
                if collection.pooled:
                    # a batch without rows carries an empty one
                    rows = mean_of_sums(value[: batch.num_rows].float(), ids, lookup)
                else:
                    rows = bags_of(value.values().float(), ids, lookup)
                vectors[key] = rows.detach() if lookup.table in self.frozen else rows
        return vectors


def _collection(collection: Collection, plan: Plan) -> nn.Module:
    meta = torch.device("meta")
    configs = []
    for name in collection.tables:
        spec = plan.tables[name]
        common: dict[str, Any] = {
            "name": name,
            "embedding_dim": spec.embedding_dim,
            "num_embeddings": spec.num_embeddings,
            "feature_names": collection.table_keys(name),
            "data_type": DataType.FP16 if spec.data_type == "FP16" else DataType.FP32,
            "init_fn": leave_uninitialised,
        }
        if collection.pooled:
            configs.append(EmbeddingBagConfig(**common, pooling=PoolingType.SUM))
        else:
            configs.append(EmbeddingConfig(**common))
    if collection.pooled:
        return EmbeddingBagCollection(configs, device=meta, is_weighted=collection.weighted)
    return EmbeddingCollection(configs, device=meta)


def table_of(key: str) -> str:
    """'...embedding_bags.<table>.weight' -> '<table>'; table names have no dots."""
    return key.rsplit(".", 2)[-2]


def leave_uninitialised(weight: Tensor) -> None:
    """TorchRec would draw numbers that depend on the sharding; `shard` fills tables itself."""
