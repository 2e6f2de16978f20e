# SPDX-License-Identifier: Apache-2.0
"""Features, groups and random batches for the tests of the embedding layer; no parser involved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from google.protobuf import text_format

from tzgen.data.batch import Batch, Ids, Ragged, Source
from tzgen.features.tables import DenseEncoder, TableSpec
from tzgen.protos.model_pb2 import FeatureGroupConfig, ModelConfig


@dataclass(frozen=True)
class FakeFeature:
    """The attributes of tzgen.features.Feature that the embedding layer reads."""

    name: str
    table: TableSpec | None = None
    is_sequence: bool = False
    value_dim: int = 1
    encoder: DenseEncoder | None = None
    weighted: bool = False
    integer: bool = False

    @property
    def is_sparse(self) -> bool:
        return self.table is not None

    @property
    def output_dim(self) -> int:
        if self.table is not None:
            return self.table.embedding_dim
        return self.value_dim if self.encoder is None else self.encoder.embedding_dim


ITEM = TableSpec("item_emb", 40, 8, init_fn="nn.init.normal_,std=0.5")
CAT = TableSpec("cat_emb", 12, 4, pooling="MEAN", init_fn="nn.init.normal_,std=0.5")
USER = TableSpec("user_emb", 30, 8, init_fn="nn.init.normal_,std=0.5")

FEATURES: tuple[FakeFeature, ...] = (
    FakeFeature("user_id", USER),
    FakeFeature("tags", TableSpec("tag_emb", 20, 8, pooling="MEAN"), value_dim=0),
    FakeFeature("weighted_tags", TableSpec("wtag_emb", 20, 4), value_dim=0, weighted=True),
    FakeFeature("city", TableSpec("city_emb", 9, 4, trainable=False)),
    FakeFeature("age"),
    FakeFeature("price", value_dim=2, encoder=DenseEncoder("mlp", 4)),
    FakeFeature("score", encoder=DenseEncoder("autodis", 4, num_channels=3)),
    FakeFeature("favourites", ITEM, value_dim=0),
    FakeFeature("uih__item", ITEM, is_sequence=True),
    FakeFeature("uih__cat", CAT, is_sequence=True, value_dim=0),
    FakeFeature("uih__dwell", is_sequence=True),
    FakeFeature("uih__time", is_sequence=True, integer=True),
    FakeFeature("cand__item", ITEM, is_sequence=True),
    FakeFeature("cand__cat", CAT, is_sequence=True, value_dim=0),
    FakeFeature("cand__time", is_sequence=True, integer=True),
)

GROUPS = """
feature_groups { group_name: "deep" group_type: DEEP
  feature_names: ["user_id", "tags", "weighted_tags", "city", "age", "price", "score", "favourites"]
  sequence_groups { group_name: "click" feature_names: ["uih__item", "uih__cat", "favourites"] }
  sequence_groups { group_name: "again" feature_names: ["uih__cat", "uih__dwell"] }
  sequence_encoders { din_encoder { input: "click" attn_mlp { hidden_units: 6 } } }
  sequence_encoders { pooling_encoder { input: "again" } }
}
feature_groups { group_name: "wide" group_type: WIDE feature_names: ["user_id", "tags"] }
feature_groups { group_name: "second" group_type: DEEP embedding_name_suffix: "two"
  feature_names: ["user_id", "uih__item"] }
feature_groups { group_name: "uih" group_type: JAGGED_SEQUENCE
  feature_names: ["uih__item", "uih__cat", "uih__dwell"] }
feature_groups { group_name: "uih_timestamp" group_type: JAGGED_SEQUENCE
  feature_names: "uih__time" }
feature_groups { group_name: "padded" group_type: SEQUENCE feature_names: ["uih__item", "user_id"] }
feature_groups { group_name: "contextual" group_type: SEQUENCE feature_names: ["user_id", "city"] }
feature_groups { group_name: "candidate" group_type: JAGGED_SEQUENCE
  feature_names: ["cand__item", "cand__cat"] }
feature_groups { group_name: "candidate_timestamp" group_type: JAGGED_SEQUENCE
  feature_names: "cand__time" }
"""

POINTWISE = """
feature_groups { group_name: "deep" group_type: DEEP
  feature_names: ["user_id", "tags", "age"]
  sequence_groups { group_name: "click"
    feature_names: ["uih__item", "uih__cat", "cand__item", "cand__cat"] }
  sequence_groups { group_name: "again" feature_names: ["uih__cat"] }
  sequence_encoders { din_encoder { input: "click" attn_mlp { hidden_units: 6 } } }
  sequence_encoders { pooling_encoder { input: "again" pooling_type: "sum" } }
}
feature_groups { group_name: "history" group_type: DEEP feature_names: "uih__item" }
feature_groups { group_name: "uih" group_type: JAGGED_SEQUENCE feature_names: "uih__item" }
feature_groups { group_name: "candidate" group_type: JAGGED_SEQUENCE
  feature_names: ["cand__item", "cand__cat"] }
"""


def parse_groups(text: str) -> list[FeatureGroupConfig]:
    return list(text_format.Parse(text, ModelConfig()).feature_groups)


def make_batch(
    history: Sequence[int],
    candidates: Sequence[int],
    *,
    seed: int = 0,
    features: Sequence[FakeFeature] = FEATURES,
) -> Batch:
    """Random values; row i has history[i] steps and candidates[i] candidates."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(history)
    batch = Batch(num_rows=rows, source=make_source(rows))
    for feature in features:
        steps = None
        if feature.is_sequence:
            steps = torch.tensor(
                list(history if feature.name.startswith("uih") else candidates), dtype=torch.int64
            )
        bags = rows if steps is None else int(steps.sum())
        longest = 0 if steps is None or not rows else int(steps.max())
        if feature.table is not None:
            if feature.value_dim == 1:
                lengths = torch.ones(bags, dtype=torch.int64)
            else:
                lengths = torch.randint(0, 4, (bags,), generator=generator)
            total = int(lengths.sum())
            values = torch.randint(0, feature.table.num_embeddings, (total,), generator=generator)
            weights = torch.rand(total, generator=generator) if feature.weighted else None
            batch.ids[feature.name] = Ids(values, lengths, weights, steps, longest)
            continue
        if feature.integer:
            numbers = torch.randint(1_700_000_000, 1_800_000_000, (bags, 1), generator=generator)
        else:
            numbers = torch.randn(bags, feature.value_dim, generator=generator)
        batch.dense[feature.name] = numbers if steps is None else Ragged(numbers, steps, longest)
    return batch


def make_source(rows: int) -> Source:
    return Source(("part.parquet",), torch.zeros(rows, dtype=torch.int32), torch.arange(rows) + 100)
