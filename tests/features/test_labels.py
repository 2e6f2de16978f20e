# SPDX-License-Identifier: Apache-2.0
"""Labels, weights and raw ids of every column type, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import xxhash

from tzgen.data.batch import Ragged
from tzgen.errors import DataError

from .feature_world import parse

TEXT = """data_config { label_fields: "y" fg_mode: FG_DAG }
  feature_configs { id_feature { feature_name: "user" expression: "user:uid"
    hash_bucket_size: 9 embedding_dim: 4 } }
  model_config { metrics { grouped_auc { grouping_key: "user" } } }
  eval_config { confidence_key: "device" }"""


def batch(**columns: Any) -> Any:
    return parse(TEXT, {"y": [0, 1], "uid": [5, 6], "device": ["a", "b"]} | columns)


@pytest.mark.parametrize(
    ("column", "dtype", "wanted"),
    [
        (pa.array([3, 2**40]), torch.int64, [3, 2**40]),
        (pa.array([1, 0], pa.int8()), torch.int64, [1, 0]),
        (pa.array([True, False]), torch.int64, [1, 0]),
        (pa.array([0.5, 2.0]), torch.float32, [0.5, 2.0]),
        (pa.array(["1", "0"]), torch.int64, [1, 0]),
        (pa.array(["0.5", "1"]), torch.float32, [0.5, 1.0]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_one_label_a_row(column: pa.Array, dtype: torch.dtype, wanted: list[float]) -> None:
    label = batch(y=column).labels["y"]
    assert label.dtype == dtype and label.tolist() == wanted


def test_lists_of_labels() -> None:
    label = batch(y=[[4, 1], []]).labels["y"]
    assert isinstance(label, Ragged) and label.max_len == 2
    assert label.values.tolist() == [4, 1] and label.lengths.tolist() == [2, 0]
    label = batch(y=pa.array([[0.5], [1.5]], pa.list_(pa.float64(), 1))).labels["y"]
    assert label.values.dtype == torch.float32


def test_texts_of_labels_beside_their_sequence() -> None:
    text = """data_config { label_fields: "s__y" }
      feature_configs { sequence_feature { sequence_name: "s" sequence_delim: "|"
        features { id_feature { feature_name: "i" num_buckets: 9 embedding_dim: 4 } } } }"""
    label = parse(text, {"s__i": ["1|2", "3"], "s__y": ["8|1", "0"]}).labels["s__y"]
    assert isinstance(label, Ragged) and label.values.tolist() == [8, 1, 0]
    label = parse(text, {"s__i": ["1", "3"], "s__y": [1, 0]}).labels["s__y"]
    assert isinstance(label, Ragged) and label.lengths.tolist() == [1, 1]


@pytest.mark.parametrize(
    "column", [[0, None], [0.5, float("nan")], ["1", ""], [[1], [None]], [[1], None]]
)
def test_a_null_label_names_its_row(column: Any) -> None:
    with pytest.raises(DataError, match="row 101, column 'y'"):
        batch(y=column)


def test_raw_ids() -> None:
    found = batch()
    assert found.raw_ids["user"].tolist() == [5, 6]  # the feature's column, before hashing
    digests = [xxhash.xxh64_intdigest(word.encode()) for word in ("a", "b")]
    wanted = np.array(digests, np.uint64).view(np.int64).tolist()
    assert found.raw_ids["device"].tolist() == wanted
    with pytest.raises(DataError, match="row 100, column 'device'"):
        batch(device=[None, "b"])
