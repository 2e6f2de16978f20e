# SPDX-License-Identifier: Apache-2.0
"""Evaluation of one feature from inputs at hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tzgen.features import create_features
from tzgen.features.bags import Bags
from tzgen.features.base import const

from .feature_world import make_config, one


def test_a_constant_is_in_every_row() -> None:
    assert const("x", 3).values.to_pylist() == ["x"] * 3 and const("x", 0).num_bags == 0


def test_a_stub_without_ids_stays_text() -> None:
    fields = 'expression: "user:x" stub_type: true default_value: "none"'
    (feature,) = create_features(make_config(one("id_feature", fields)))
    assert feature.stub and feature.table is None
    found = feature.evaluate([Bags(pa.array(["a"]), np.array([1, 0]))])
    assert found.values.to_pylist() == ["a", "none"] and found.lengths is None


def test_values_beyond_value_dim_are_dropped_before_they_become_ids() -> None:
    fields = 'expression: "user:x" num_buckets: 9 embedding_dim: 4 value_dim: 2'
    (feature,) = create_features(make_config(one("id_feature", fields)))
    found = feature.evaluate([Bags(np.arange(5), np.array([3, 0, 2]))])
    assert found.values.tolist() == [0, 1, 3, 4]
    assert found.lengths is not None and found.lengths.tolist() == [2, 0, 2]
