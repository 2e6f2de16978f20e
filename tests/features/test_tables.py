# SPDX-License-Identifier: Apache-2.0
"""Encoders, and tables that features share."""

from __future__ import annotations

import pytest

from tzgen.errors import ConfigError
from tzgen.features import DenseEncoder, create_features, merge_tables
from tzgen.features.tables import Constraints, TableSpec

from .feature_world import make_config, one


def test_encoders() -> None:
    fields = "embedding_dim: 8 autodis { num_channels: 3 temperature: 0.5 }"
    (feature,) = create_features(make_config(one("raw_feature", fields, "FG_NONE")))
    assert feature.encoder is not None and feature.encoder.keep_prob == pytest.approx(0.8)
    assert (feature.encoder.kind, feature.encoder.num_channels) == ("autodis", 3)
    assert feature.output_dim == 8 and not feature.is_sparse and feature.table is None
    text = one("raw_feature", "embedding_dim: 8 value_dim: 2 mlp { }", "FG_NONE")
    assert create_features(make_config(text))[0].encoder == DenseEncoder("mlp", 8)


def test_shared_tables_must_agree() -> None:
    shared = 'embedding_name: "t" embedding_dim: 4'
    text = f"""feature_configs {{ id_feature {{ feature_name: "a" num_buckets: 5 {shared} }} }}
      feature_configs {{ id_feature {{ feature_name: "b" num_buckets: 5 {shared}
        pooling: "mean" }} }}"""
    tables = merge_tables(f.table for f in create_features(make_config(text)) if f.table)
    assert list(tables) == ["t"]
    other = text.replace("num_buckets: 5", "num_buckets: 6", 1)
    with pytest.raises(ConfigError, match="found num_embeddings 6 and 5;"):
        merge_tables(f.table for f in create_features(make_config(other)) if f.table)


def test_sharding_constraints_of_a_shared_table() -> None:
    def merged(first: Constraints | None, second: Constraints | None) -> Constraints | None:
        specs = (TableSpec("t", 5, 4, constraints=one) for one in (first, second))
        return merge_tables(specs)["t"].constraints

    rows, columns = Constraints(("row_wise",)), Constraints(("column_wise",))
    assert merged(rows, None) == merged(None, rows) == merged(rows, rows) == rows
    assert merged(None, None) is None
    with pytest.raises(ConfigError, match="found constraints row_wise and column_wise;"):
        merged(rows, columns)


def test_the_initializer_of_a_shared_table() -> None:
    def merged(*texts: str) -> str:
        return merge_tables(TableSpec("t", 5, 4, init_fn=text) for text in texts)["t"].init_fn

    zeros, ones = "nn.init.zeros_", "nn.init.ones_"
    assert merged(zeros, "") == merged("", zeros) == merged(zeros, zeros) == zeros
    with pytest.raises(ConfigError, match=f"found init_fn {zeros} and {ones};"):
        merged(zeros, "", ones)
