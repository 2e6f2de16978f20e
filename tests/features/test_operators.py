# SPDX-License-Identifier: Apache-2.0
"""Widths by kind, and that kinds without operator read their value as it is."""

from __future__ import annotations

import pytest

from tzgen.config.features import features_of
from tzgen.features import create_features
from tzgen.features.operators import operator_of

from .feature_world import make_config, one


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


@pytest.mark.parametrize("kind", ["id_feature", "sequence_id_feature"])
def test_ids_are_their_input(kind: str) -> None:
    (ref,) = features_of(make_config(one(kind, 'expression: "user:x"')))
    assert operator_of(ref, True) is None


@pytest.mark.parametrize("kind", ["raw_feature", "combo_feature"])
def test_nothing_is_operated_on_when_nothing_is_generated(kind: str) -> None:
    (ref,) = features_of(make_config(one(kind, 'expression: "user:x"')))
    assert operator_of(ref, False) is None and operator_of(ref, True) is not None
