# SPDX-License-Identifier: Apache-2.0
"""What a config says about its features: tables, widths, inputs, modes, refusals."""

from __future__ import annotations

import pytest

from tzgen.errors import ConfigError
from tzgen.features import Constraints, create_features

from .feature_world import bags, make_config, one, parse

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


def test_weights_count_only_where_they_are_used() -> None:
    fields = 'expression: "user:c" weighted: true num_buckets: 9 embedding_dim: 4 '
    columns = {"c": ["3:0.5\x1d4:2", "", None, "5:1"]}
    ids = parse(one("id_feature", fields + "use_weight: true"), columns).ids["f"]
    assert bags(ids) == [[3, 4], [], [], [5]]
    assert ids.weights is not None and ids.weights.tolist() == [0.5, 2.0, 1.0]
    ids = parse(one("id_feature", fields), columns).ids["f"]
    assert bags(ids) == [[3, 4], [], [], [5]] and ids.weights is None
    ids = parse(one("id_feature", fields + 'use_weight: true default_value: "7"'), columns).ids["f"]
    assert bags(ids) == [[3, 4], [7], [7], [5]]
    assert ids.weights is not None and ids.weights.tolist() == [0.5, 2.0, 1.0, 1.0, 1.0]


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


def test_hashed_features_share_what_was_hashed() -> None:
    hashed = "hash_bucket_size: 99 embedding_dim: 4"
    names = ('feature_name: "a" expression: "user:a"', 'feature_name: "b" expression: "user:b"')
    text = "".join(f"feature_configs {{ id_feature {{ {name} {hashed} }} }}" for name in names)
    first, second = create_features(make_config("data_config { fg_mode: FG_DAG }" + text))
    assert first.buckets is second.buckets and first.table != second.table
