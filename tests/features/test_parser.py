# SPDX-License-Identifier: Apache-2.0
"""From rows to a Batch: modes agree, places are named, lengths and ranges are checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import xxhash

from tzgen.data.batch import Ragged
from tzgen.errors import DataError
from tzgen.features import FeatureParser, create_features

from .feature_world import bags, make_config, make_rows, make_source, one, parse


@pytest.mark.parametrize(
    ("default", "column", "wanted"),
    [
        ("", ["1\x032", "", None, "3"], [[1, 2], [], [], [3]]),
        ('fg_encoded_default_value: "0"', ["1\x032", "", None, "3"], [[1, 2], [0], [0], [3]]),
        ("", [1, 2, None, 3], [[1], [2], [], [3]]),
        ('fg_encoded_default_value: "0"', [1, 2, None, 3], [[1], [2], [0], [3]]),
        ('fg_encoded_default_value: ""', [[1, 2], None, [], [3]], [[1, 2], [], [], [3]]),
        ('fg_encoded_default_value: "4\\x035"', [[1], None], [[1], [4, 5]]),
    ],
)
def test_encoded_ids(default: str, column: Any, wanted: list[list[int]]) -> None:
    text = one("id_feature", f"num_buckets: 10 embedding_dim: 4 {default}", "FG_NONE")
    assert bags(parse(text, {"f": column}).ids["f"]) == wanted


@pytest.mark.parametrize(
    "column",
    [
        ["1;2", "", "3", "4\x035;6", None],
        [[[1], [2]], [], [[3]], [[4, 5], [6]], None],
    ],
)
def test_encoded_sequences(column: Any) -> None:
    fields = "num_buckets: 10 embedding_dim: 4 value_dim: 0"
    ids = parse(one("sequence_id_feature", fields, "FG_NONE"), {"f": column}).ids["f"]
    assert bags(ids) == [[1], [2], [3], [4, 5], [6]]
    assert ids.seq_lengths is not None and ids.seq_lengths.tolist() == [2, 0, 1, 2, 0]
    assert ids.max_len == 2
    single = one("sequence_id_feature", "num_buckets: 10 embedding_dim: 4", "FG_NONE")
    with pytest.raises(DataError, match=r"row 103.*2 ids in one step.*value_dim: 0"):
        parse(single, {"f": column})


@pytest.mark.parametrize("value", [1, -7, 2**40, "abc", "日本"])
def test_hash_is_xxh64_of_the_text(value: object) -> None:
    text = one("id_feature", 'expression: "user:c" hash_bucket_size: 1009 embedding_dim: 4')
    wanted = xxhash.xxh64_intdigest(str(value).encode()) % 1009
    assert bags(parse(text, {"c": [value, None]}).ids["f"]) == [[wanted], []]
    default = one(
        "id_feature",
        f'expression: "user:c" hash_bucket_size: 1009 embedding_dim: 4 default_value: "{value}"',
    )
    assert bags(parse(default, {"c": pa.nulls(1, pa.string())}).ids["f"]) == [[wanted]]


def test_generated_sequences_keep_the_first_values_of_a_step() -> None:
    fields = 'expression: "user:c" num_buckets: 10 embedding_dim: 4'
    ids = parse(one("sequence_id_feature", fields), {"c": ["1\x1d2;3;;4", ""]}).ids["f"]
    assert bags(ids) == [[1], [3], [], [4]]
    filled = parse(
        one("sequence_id_feature", f'{fields} default_value: "9"'), {"c": ["1\x1d2;3;;4", None]}
    )
    assert bags(filled.ids["f"]) == [[1], [3], [9], [4]]  # and no step for an empty row


def test_features_of_features() -> None:
    text = """data_config { fg_mode: FG_DAG }
      feature_configs { lookup_feature { feature_name: "count" map: "item:m" key: "feature:bin" } }
      feature_configs { raw_feature { feature_name: "bin" expression: "user:age"
        boundaries: [18, 30] embedding_dim: 4 stub_type: true } }
      feature_configs { combo_feature { feature_name: "pair" expression: ["const:x", "feature:bin"]
        vocab_list: ["x_1"] embedding_dim: 4 } }"""
    columns = {"age": [17.0, 25.0, None], "m": ["0:5\x1d1:6", "1:7", "0:8"]}
    batch = parse(text, columns)
    assert batch.dense["count"].tolist() == [[5], [7], [8]]
    assert bags(batch.ids["pair"]) == [[1], [2], [1]]
    assert "bin" not in batch.ids
    parser = FeatureParser(make_config(text), create_features(make_config(text)))
    assert parser.input_columns == ["age", "m"]


def test_generated_and_then_encoded_rows_give_the_same_batch() -> None:
    """FG_NONE on the ids of FG_DAG, and FG_BUCKETIZE on its words, reproduce it."""
    fields = 'expression: ["user:a", "user:b"] hash_bucket_size: 99 embedding_dim: 4'
    rows = {"a": ["x\x1dy", "z", None], "b": ["1", "2\x1d3", "4"]}
    wanted = parse(one("combo_feature", fields), rows).ids["f"]
    words = {"f": [["x_1", "y_1"], ["z_2", "z_3"], []]}
    bucketized = parse(one("combo_feature", fields, "FG_BUCKETIZE"), words).ids["f"]
    encoded = parse(one("combo_feature", fields, "FG_NONE"), {"f": bags(wanted)}).ids["f"]
    for found in (bucketized, encoded):
        torch.testing.assert_close(found.values, wanted.values)
        torch.testing.assert_close(found.lengths, wanted.lengths)


RANGE = "num_buckets: 5 embedding_dim: 4"


@pytest.mark.parametrize("mode", ["FG_NONE", "FG_DAG"])
def test_ids_out_of_range(mode: str) -> None:
    fields = f'{RANGE} expression: "user:f" default_value: "3" fg_encoded_default_value: "3"'
    columns = {"f": [[1, 5], [4], [-1, 2], [9]]}
    with pytest.raises(DataError) as caught:
        parse(one("id_feature", fields, mode), columns)
    assert (caught.value.file, caught.value.row) == ("rows.parquet", 100)
    assert "id 5" in str(caught.value) and "< 5" in str(caught.value)
    clipped = parse(one("id_feature", fields, mode, "out_of_range_ids: CLIP"), columns)
    assert bags(clipped.ids["f"]) == [[1, 4], [4], [0, 2], [4]]
    assert clipped.counters == {"out_of_range/f": 3}
    default = parse(one("id_feature", fields, mode, "out_of_range_ids: DEFAULT"), columns)
    assert bags(default.ids["f"]) == [[1, 3], [4], [3, 2], [3]]
    none = one("id_feature", f'{RANGE} expression: "user:f"', mode, "out_of_range_ids: DEFAULT")
    assert bags(parse(none, columns).ids["f"]) == [[1], [4], [2], []]


SEQUENCE = """feature_configs { sequence_feature { sequence_name: "s" sequence_length: 2
  features { id_feature { feature_name: "i" num_buckets: 99 embedding_dim: 4 } }
  features { raw_feature { feature_name: "t" } }
} }"""


def test_a_sequence_is_cut_alike_everywhere() -> None:
    columns = {"s__i": [[1, 2, 3], [], [4]], "s__t": [[10, 20, 30], None, [40]]}
    labels = 'data_config { label_fields: "s__y" sample_weight_fields: "s__w" }'
    columns |= {"s__y": [[0, 1, 0], [], [1]], "s__w": [[0.5, 1.5, 2.5], [], [3.5]]}
    batch = parse(labels + SEQUENCE, columns)
    ids, time, label = batch.ids["s__i"], batch.dense["s__t"], batch.labels["s__y"]
    assert isinstance(time, Ragged) and isinstance(label, Ragged)
    assert ids.values.tolist() == [2, 3, 4] and ids.max_len == 2
    assert time.values.tolist() == [[20], [30], [40]] and time.values.dtype == torch.int64
    assert label.values.tolist() == [1, 0, 1] and label.lengths.tolist() == [2, 0, 1]
    weight = batch.weights["s__w"]
    assert isinstance(weight, Ragged) and weight.values.tolist() == [1.5, 2.5, 3.5]
    assert ids.seq_lengths is time.lengths is label.lengths
    assert batch.counters == {"truncated/s": 1}


def test_descending_histories_keep_their_first_steps() -> None:
    model = "model_config { dlrm_hstu { sequence_timestamp_is_ascending: false } }"
    columns = {"s__i": [[1, 2, 3]], "s__t": [[30, 20, 10]]}
    assert parse(SEQUENCE + model, columns).ids["s__i"].values.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"s__t": [[10], [20]]}, r"row 101, column 's__t'.*1 steps, and 0 in 's__i'"),
        ({"s__t": [["a"], []]}, r"row 100, column 's__t'.*'a'"),
        ({"s__i": [[True], [200]]}, r"row 101.*id 200"),
        ({"s__y": [[1], [1]]}, r"row 101, column 's__y'.*1 values for a sequence of 0"),
        ({"s__y": [[None], []]}, r"row 100, column 's__y'.*null"),
        ({"s__y": [[1], None]}, r"row 101, column 's__y'.*null"),
    ],
)
def test_errors_name_file_row_and_column(changed: Mapping[str, Any], named: str) -> None:
    columns: dict[str, Any] = {"s__i": [[1], []], "s__t": [[10], []], "s__y": [[1], []]}
    if changed == {"s__i": [[True], [200]]}:
        changed = {"s__i": [[1], [200]], "s__t": [[10], [20]], "s__y": [[1], [1]]}
    with pytest.raises(DataError, match=r"rows\.parquet, " + named):
        parse('data_config { label_fields: "s__y" }' + SEQUENCE, columns | changed)


def test_groups_named_alongside_are_equally_long() -> None:
    group = "feature_groups {{ group_name: {!r} group_type: JAGGED_SEQUENCE feature_names: {!r} }}"
    model = "".join(group.format(*pair) for pair in [("uih", "a"), ("uih_timestamp", "b")])
    text = f"""model_config {{ {model} }}
      feature_configs {{ sequence_id_feature {{ feature_name: "a" num_buckets: 9
        embedding_dim: 4 }} }}
      feature_configs {{ sequence_raw_feature {{ feature_name: "b" }} }}"""
    batch = parse(text, {"a": [[1, 2]], "b": ["1755555555;1755555556"]})
    time = batch.dense["b"]
    assert isinstance(time, Ragged) and time.values.tolist() == [[1755555555], [1755555556]]
    assert time.values.dtype == torch.int64  # texts of a timestamp group are integers
    with pytest.raises(DataError, match="equal lengths"):
        parse(text, {"a": [[1, 2]], "b": ["1"]})
    floats = parse(text, {"a": [[1]], "b": [[1755555555.75]]}).dense["b"]
    assert isinstance(floats, Ragged) and floats.values.tolist() == [[1755555555]]


def test_a_missing_column_is_named_with_the_nearest() -> None:
    text = one("id_feature", "num_buckets: 5 embedding_dim: 4", "FG_NONE").replace(
        '"f"', '"item_id"'
    )
    with pytest.raises(DataError, match=r"'item_id'.*Did you mean 'item_ids'"):
        parse(text, {"item_ids": [1]})


def test_unsupported_types_are_named() -> None:
    text = one("id_feature", "num_buckets: 5 embedding_dim: 4", "FG_NONE")
    with pytest.raises(DataError, match=r"column 'f'.*timestamp"):
        parse(text, {"f": pa.array([1], pa.timestamp("s"))})


def test_no_rows() -> None:
    text = 'data_config { label_fields: "y" }' + SEQUENCE
    empty = pa.array([], pa.list_(pa.int64()))
    batch = parse(text, {"s__i": empty, "s__t": empty, "y": pa.array([], pa.int64())})
    assert batch.num_rows == 0 and batch.ids["s__i"].values.numel() == 0
    assert batch.ids["s__i"].max_len == 0 and batch.labels["y"].shape == (0,)  # type: ignore[union-attr]
    words = one("id_feature", 'expression: "user:c" vocab_list: ["a"] embedding_dim: 4')
    assert parse(words, {"c": pa.array([], pa.string())}).ids["f"].values.numel() == 0


def test_tensors_own_their_memory() -> None:
    rows = make_rows({"f": pa.array(np.arange(4))})
    config = make_config(one("id_feature", "num_buckets: 5 embedding_dim: 4", "FG_NONE"))
    parser = FeatureParser(config, create_features(config))
    parser.parse(rows, make_source(4)).ids["f"].values.fill_(0)
    assert rows.column(0).to_pylist() == [0, 1, 2, 3]


def test_columns_in_slices_and_dictionaries() -> None:
    text = one("id_feature", 'expression: "user:c" hash_bucket_size: 50 embedding_dim: 4')
    words = pa.array([f"w{i % 7}" for i in range(40)])
    plain = parse(text, {"c": words}).ids["f"].values[10:30]
    for column in (words.slice(10, 20), words.dictionary_encode().slice(10, 20)):
        assert parse(text, {"c": column}).ids["f"].values.tolist() == plain.tolist()


def test_input_columns_and_passthrough() -> None:
    text = """data_config { label_fields: "y" sample_weight_fields: "w" }
      feature_configs { id_feature { feature_name: "u" num_buckets: 9 embedding_dim: 4 } }
      model_config { metrics { grouped_auc { grouping_key: "u" } }
        losses { jrc_loss { session_name: "session" } } }"""
    config = make_config(text)
    features = create_features(config)
    parser = FeatureParser(config, features, reserved_columns=["name", "u"])
    assert parser.input_columns == ["u", "y", "w", "session", "name"]
    bare = FeatureParser(config, features, labels=False)
    assert bare.input_columns == ["u"]
    columns = {"u": [1, 2], "y": [0, 1], "w": [1, 2], "session": ["a", "b"], "name": ["p", "q"]}
    batch = parse(text, columns, reserved_columns=["name", "u"])
    assert batch.passthrough is not None
    assert batch.passthrough.to_pydict() == {"name": ["p", "q"], "u": [1, 2]}
    assert not parse(text, columns, labels=False).labels
