# SPDX-License-Identifier: Apache-2.0
"""Bags to tensors: dtypes, shared lengths, memory, policies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tzgen.data.batch import Ragged
from tzgen.features import create_features
from tzgen.features.bags import BadValue, Bags
from tzgen.features.tensors import Shared, Steps, tensor, to_dense, to_ids

from .feature_world import make_config, one


def feature(kind: str, fields: str) -> Any:
    return create_features(make_config(one(kind, fields, "FG_NONE")))[0]


def test_read_only_arrays_are_copied() -> None:
    array = np.arange(3)
    array.flags.writeable = False
    made = tensor(array)
    made += 1
    assert array.tolist() == [0, 1, 2] and made.tolist() == [1, 2, 3]


def test_ids_of_rows_and_of_steps() -> None:
    steps = Steps(torch.tensor([2, 1]), 2)
    shared = Shared({"f": steps}, {})
    sequence = feature("sequence_id_feature", "num_buckets: 9 embedding_dim: 4")
    ids = to_ids(sequence, Bags(np.array([1, 2, 3]), None, np.array([2, 1])), shared, "ERROR")
    assert ids.seq_lengths is steps.lengths and ids.max_len == 2
    assert ids.lengths.tolist() == [1, 1, 1] and ids.lengths is shared.ones(3)
    row = feature("id_feature", "num_buckets: 9 embedding_dim: 4")
    ids = to_ids(row, Bags(np.array([1, 2]), np.array([2, 0])), Shared({}, {}), "ERROR")
    assert ids.seq_lengths is None and ids.lengths.dtype == torch.int64


def test_replaced_ids_keep_their_weights_in_step() -> None:
    weighted = feature(
        "id_feature", "num_buckets: 3 embedding_dim: 4 weighted: true use_weight: true"
    )
    weights = np.array([0.1, 0.2, 0.3], np.float32)
    bags = Bags(np.array([1, 7, 2]), np.array([2, 1]), weights=weights)
    shared = Shared({}, {})
    ids = to_ids(weighted, bags, shared, "DEFAULT")
    assert ids.values.tolist() == [1, 2] and ids.lengths.tolist() == [1, 1]
    assert ids.weights is not None and ids.weights.tolist() == pytest.approx([0.1, 0.3])
    assert shared.counters == {"out_of_range/f": 1}
    assert to_ids(weighted, bags, shared, "CLIP").values.tolist() == [1, 2, 2]
    with pytest.raises(BadValue, match="id 7") as caught:
        to_ids(weighted, bags, shared, "ERROR")
    assert caught.value.row == 0


def test_dense_of_rows_and_of_steps() -> None:
    wide = feature("raw_feature", "value_dim: 2")
    found = to_dense(wide, Bags(np.array([1.0, 2, 3, 4]), np.array([2, 2])), Shared({}, {}))
    assert isinstance(found, torch.Tensor) and found.dtype == torch.float32
    assert found.tolist() == [[1, 2], [3, 4]]
    narrow = feature("sequence_raw_feature", "")
    shared = Shared({"f": Steps(torch.tensor([2, 0]), 2)}, {})
    ragged = to_dense(narrow, Bags(np.array([5, 6], np.int32), None, np.array([2, 0])), shared)
    assert isinstance(ragged, Ragged) and ragged.values.dtype == torch.int64
    with pytest.raises(BadValue, match="1 numbers"):
        to_dense(wide, Bags(np.array([1.0]), np.array([1])), Shared({}, {}))
