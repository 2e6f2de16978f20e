# SPDX-License-Identifier: Apache-2.0
"""From an Arrow batch through the real parser to the groups, both engines, by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from embedding_world import make_source
from google.protobuf import text_format

from tzgen.data.batch import Ragged
from tzgen.embeddings import EmbeddingGroup, LocalTables, OptimizerSpec
from tzgen.features import FeatureParser, create_features
from tzgen.protos.pipeline_pb2 import PipelineConfig

CONFIG = """
feature_configs { id_feature { feature_name: "user" num_buckets: 10 embedding_dim: 4 } }
feature_configs { id_feature { feature_name: "tags" num_buckets: 6 embedding_dim: 4
                               pooling: "mean" } }
feature_configs { raw_feature { feature_name: "age" } }
feature_configs { sequence_feature {
  sequence_name: "uih" sequence_length: 10
  features { id_feature { feature_name: "item" embedding_name: "item" num_buckets: 8
                          embedding_dim: 4
                          expression: "item:item" } }
  features { raw_feature { feature_name: "time" expression: "item:time" } }
} }
model_config {
  feature_groups { group_name: "deep" feature_names: ["user", "tags", "age"] }
  feature_groups { group_name: "uih" group_type: JAGGED_SEQUENCE feature_names: "uih__item" }
  feature_groups { group_name: "uih_timestamp" group_type: JAGGED_SEQUENCE
                   feature_names: "uih__time" }
}
"""
TIMES = [[1_700_000_001, 1_700_000_002], [], [1_700_000_129]]


@pytest.fixture
def rows() -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "user": pa.array([3, 1, 9]),
            "tags": pa.array([[1, 2], [], [5]], pa.list_(pa.int64())),
            "age": pa.array([0.5, 1.5, 2.5]),
            "uih__item": pa.array([[4, 5], [], [7]], pa.list_(pa.int64())),
            "uih__time": pa.array(TIMES, pa.list_(pa.int64())),
        }
    )


@pytest.fixture(params=["local", "torchrec"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    joined = dist.is_initialized()
    if request.param == "torchrec":
        pytest.importorskip("torchrec", reason="the torchrec engine needs torchrec and fbgemm")
    yield request.param
    if dist.is_initialized() and not joined:
        dist.destroy_process_group()


def test_groups_of_an_arrow_batch(rows: pa.RecordBatch, engine: str) -> None:
    config = text_format.Parse(CONFIG, PipelineConfig())
    features = create_features(config)
    groups = config.model_config.feature_groups
    module: torch.nn.Module = EmbeddingGroup(features, groups, engine=engine, seed=1)
    parse = module.attach_kjts(FeatureParser(config, features).parse)
    if engine == "torchrec":
        from tzgen.embeddings.sharding import shard

        module = shard(module, device=torch.device("cpu"), optimizer=OptimizerSpec("sgd", 0.1))
    got = module(parse(rows, make_source(3)))

    reference = EmbeddingGroup(features, groups, engine="local", seed=1).tables
    assert isinstance(reference, LocalTables)
    table = {name: weight.detach() for name, weight in reference.named_weights()}
    tags = torch.stack([table["tags_emb"][1:3].mean(0), torch.zeros(4), table["tags_emb"][5]])
    age = torch.tensor([[0.5], [1.5], [2.5]])
    torch.testing.assert_close(got["deep"], torch.cat([table["user_emb"][[3, 1, 9]], tags, age], 1))
    assert isinstance(got["uih"], Ragged) and isinstance(got["uih_timestamp"], Ragged)
    torch.testing.assert_close(got["uih"].values, table["item"][[4, 5, 7]])
    assert got["uih"].lengths.tolist() == [2, 0, 1] and got["uih"].max_len == 2
    assert got["uih_timestamp"].values[:, 0].tolist() == [t for row in TIMES for t in row]
