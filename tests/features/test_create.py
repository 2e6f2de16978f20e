# SPDX-License-Identifier: Apache-2.0
"""What a config says about its features: tables, widths, inputs, modes, refusals."""

from __future__ import annotations

import pytest
from feature_world import bags, make_config, one, parse

from tzgen.errors import ConfigError
from tzgen.features import Constraints, DenseEncoder, create_features, merge_tables

SEQUENCE = """feature_configs { sequence_feature { sequence_name: "s" sequence_length: 3
  sequence_delim: "|"
  features { id_feature { feature_name: "i" expression: "item:iid" num_buckets: 9
    embedding_dim: 8 embedding_name: "item" pooling: "mean" data_type: "FP16" trainable: false
    init_fn: "nn.init.zeros_"
    embedding_constraints { sharding_types: "row_wise" compute_kernels: "fused" } } }
  features { raw_feature { feature_name: "t" expression: "user:t" } }
  features { lookup_feature { feature_name: "l" map: "user:m" key: "item:iid" } }
  features { lookup_feature { feature_name: "u" map: "user:m" key: "user:q"
    sequence_fields: "q" hash_bucket_size: 7 embedding_dim: 4 } }
} }"""


def test_a_grouped_sequence() -> None:
    text = f"data_config {{ fg_mode: FG_DAG }} {SEQUENCE}"
    item, time, lookup, other = create_features(make_config(text))
    assert (item.name, item.prefix, item.sequence_name) == ("s__i", "s__", "s")
    assert item.is_sequence and item.is_sparse and item.sequence_length == 3
    table = item.table
    assert table is not None and (table.name, table.num_embeddings) == ("item", 9)
    assert (table.embedding_dim, table.pooling, table.data_type) == (8, "MEAN", "FP16")
    assert table.init_fn == "nn.init.zeros_" and not table.trainable
    assert table.constraints == Constraints(("row_wise",), ("fused",))
    assert item.value_dim == 1 and item.output_dim == 8
    assert item.input_columns == ("s__iid",)
    assert time.input_columns == ("s__t",) and time.table is None and time.output_dim == 1
    assert lookup.input_columns == ("m", "s__iid") and other.input_columns == ("m", "s__q")
    assert other.table is not None and other.table.name == "s__u_emb"


@pytest.mark.parametrize("mode", ["FG_NONE", "FG_BUCKETIZE"])
def test_encoded_columns_are_named_as_the_features(mode: str) -> None:
    features = create_features(make_config(f"data_config {{ fg_mode: {mode} }} {SEQUENCE}"))
    assert [f.input_columns for f in features] == [("s__i",), ("s__t",), ("s__l",), ("s__u",)]


def test_unset_mode_is_none_and_can_be_overridden() -> None:
    config = make_config(SEQUENCE)
    assert create_features(config)[0].input_columns == ("s__i",)
    assert create_features(config, fg="FG_NORMAL")[0].input_columns == ("s__iid",)


@pytest.mark.parametrize(
    ("kind", "fields", "value_dim", "output_dim"),
    [
        ("id_feature", "num_buckets: 5 embedding_dim: 4", 0, 4),
        ("id_feature", "num_buckets: 5 embedding_dim: 4 value_dim: 1", 1, 4),
        ("sequence_id_feature", "num_buckets: 5 embedding_dim: 4", 1, 4),
        ("sequence_id_feature", "num_buckets: 5 embedding_dim: 4 value_dim: 0", 0, 4),
        ("sequence_combo_feature", "hash_bucket_size: 5 embedding_dim: 4", 1, 4),
        ("raw_feature", "", 1, 1),
        ("raw_feature", "value_dim: 6", 6, 6),
        ("raw_feature", "boundaries: 1 embedding_dim: 4", 1, 4),
        ("lookup_feature", "", 1, 1),
        ("lookup_feature", "value_dim: 3", 3, 3),
        ("expr_feature", "", 0, 1),
        ("overlap_feature", "", 1, 1),
    ],
)
def test_widths(kind: str, fields: str, value_dim: int, output_dim: int) -> None:
    (feature,) = create_features(make_config(one(kind, fields, "FG_NONE")))
    assert (feature.value_dim, feature.output_dim) == (value_dim, output_dim)


def test_encoders() -> None:
    fields = "embedding_dim: 8 autodis { num_channels: 3 temperature: 0.5 }"
    (feature,) = create_features(make_config(one("raw_feature", fields, "FG_NONE")))
    assert feature.encoder is not None and feature.encoder.keep_prob == pytest.approx(0.8)
    assert (feature.encoder.kind, feature.encoder.num_channels) == ("autodis", 3)
    assert feature.output_dim == 8 and not feature.is_sparse and feature.table is None
    text = one("raw_feature", "embedding_dim: 8 value_dim: 2 mlp { }", "FG_NONE")
    assert create_features(make_config(text))[0].encoder == DenseEncoder("mlp", 8)


def test_weights_count_only_where_they_are_used() -> None:
    fields = 'expression: "u:c" weighted: true num_buckets: 9 embedding_dim: 4 '
    fields = fields.replace("u:c", "user:c")
    columns = {"c": ["3:0.5\x1d4:2", "", None, "5:1"]}
    ids = parse(one("id_feature", fields + "use_weight: true"), columns).ids["f"]
    assert bags(ids) == [[3, 4], [], [], [5]]
    assert ids.weights is not None and ids.weights.tolist() == [0.5, 2.0, 1.0]
    ids = parse(one("id_feature", fields), columns).ids["f"]
    assert bags(ids) == [[3, 4], [], [], [5]] and ids.weights is None
    ids = parse(one("id_feature", fields + 'use_weight: true default_value: "7"'), columns).ids["f"]
    assert bags(ids) == [[3, 4], [7], [7], [5]]
    assert ids.weights is not None and ids.weights.tolist() == [0.5, 2.0, 1.0, 1.0, 1.0]


def test_shared_tables_must_agree() -> None:
    shared = 'embedding_name: "t" embedding_dim: 4'
    text = f"""feature_configs {{ id_feature {{ feature_name: "a" num_buckets: 5 {shared} }} }}
      feature_configs {{ id_feature {{ feature_name: "b" num_buckets: 5 {shared}
        pooling: "mean" }} }}"""
    tables = merge_tables(f.table for f in create_features(make_config(text)) if f.table)
    assert list(tables) == ["t"]
    other = text.replace("num_buckets: 5", "num_buckets: 6", 1)
    with pytest.raises(ConfigError, match="num_embeddings=6"):
        merge_tables(f.table for f in create_features(make_config(other)) if f.table)


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        ("id_feature", 'expression: "user:x" num_buckets: 3', "embedding_dim"),
        ("id_feature", 'expression: "user:x" embedding_dim: 4', "hash_bucket_size"),
        ("id_feature", "num_buckets: 3 embedding_dim: 4", "expression"),
        ("id_feature", 'expression: "x" num_buckets: 3 embedding_dim: 4', "side:name"),
        ("id_feature", 'expression: "arm:x" num_buckets: 3 embedding_dim: 4', "arm:x"),
        ("id_feature", 'expression: "feature:x" num_buckets: 3 embedding_dim: 4', "feature:x"),
        (
            "id_feature",
            'expression: "user:x" num_buckets: 3 embedding_dim: 4 default_value: "z"',
            "'z'",
        ),
        ("sequence_lookup_feature", 'map: "user:m" key: "user:k"', "sequence_fields"),
        ("lookup_feature", 'map: "user:m" key: "user:k" combiner: "avg"', "'avg'"),
        ("raw_feature", 'expression: "user:x" default_value: "z"', "'z'"),
        (
            "raw_feature",
            'expression: "user:x" value_dim: 2 embedding_dim: 4 autodis { num_channels: 3 }',
            "value_dim",
        ),
        ("custom_feature", 'expression: "user:x"', "custom_feature"),
        ("kv_dot_product", 'query: "user:x" document: "user:y"', "kv_dot_product"),
    ],
)
def test_refusals_name_the_field(kind: str, fields: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        create_features(make_config(one(kind, fields)))


def test_a_name_is_used_once() -> None:
    feature = 'feature_configs { raw_feature { feature_name: "a" } }'
    with pytest.raises(ConfigError, match="'a' twice"):
        create_features(make_config(feature * 2))
