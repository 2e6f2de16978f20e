# SPDX-License-Identifier: Apache-2.0
"""Synthesised rows parse, for every kind and mode, and hold what they promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tzgen.config.load import load_pipeline
from tzgen.data.batch import Ragged
from tzgen.errors import DataError
from tzgen.features import FeatureParser, create_features
from tzgen.features.synthesis import synthesise

from .feature_world import make_config, make_source

TEXTS = sorted((Path(__file__).parent.parent / "integration" / "texts").glob("*.config"))
ROWS = 40

EVERYTHING = """data_config {{ fg_mode: {mode} label_fields: ["cand__y", "done"]
    sample_weight_fields: "cand__w" sample_cost_field: "cost" }}
  feature_configs {{ id_feature {{ feature_name: "w" expression: "user:w" weighted: true
    use_weight: true hash_bucket_size: 9 embedding_dim: 4 }} }}
  feature_configs {{ id_feature {{ feature_name: "v" expression: "user:v" vocab_list: ["a", "b"]
    embedding_dim: 4 }} }}
  feature_configs {{ id_feature {{ feature_name: "n" expression: "item:k" num_buckets: 7
    embedding_dim: 4 }} }}
  feature_configs {{ raw_feature {{ feature_name: "r" expression: "user:r" value_dim: 3 }} }}
  feature_configs {{ lookup_feature {{ feature_name: "l" map: "user:m" key: "item:k" }} }}
  feature_configs {{ lookup_feature {{ feature_name: "ln" map: "user:mn" key: "item:k"
    num_buckets: 5 embedding_dim: 4 }} }}
  feature_configs {{ lookup_feature {{ feature_name: "l2" map: "user:m2" key: "item:k"
    value_dim: 2 }} }}
  feature_configs {{ match_feature {{ feature_name: "ma" nested_map: "user:nm" pkey: "item:k"
    skey: "ALL" }} }}
  feature_configs {{ combo_feature {{ feature_name: "c" expression: ["user:v", "feature:n"]
    hash_bucket_size: 9 embedding_dim: 4 }} }}
  feature_configs {{ expr_feature {{ feature_name: "e" variables: ["user:x"]
    expression: "x * 2" }} }}
  feature_configs {{ overlap_feature {{ feature_name: "o" query: "user:q" title: "item:t"
    method: "is_equal" }} }}
  feature_configs {{ sequence_feature {{ sequence_name: "uih" sequence_length: 8
    features {{ id_feature {{ feature_name: "i" expression: "item:iid" num_buckets: 9
      embedding_dim: 4 }} }}
    features {{ raw_feature {{ feature_name: "t" expression: "user:t" }} }}
    features {{ raw_feature {{ feature_name: "a" expression: "user:a" }} }}
    features {{ bool_mask_feature {{ feature_name: "b" expression: ["user:a", "user:mask"]
      hash_bucket_size: 9 embedding_dim: 4 stub_type: true }} }}
  }} }}
  feature_configs {{ sequence_feature {{ sequence_name: "cand" sequence_length: 8
    features {{ id_feature {{ feature_name: "i" expression: "item:iid" num_buckets: 9
      embedding_dim: 4 }} }}
    features {{ raw_feature {{ feature_name: "t" expression: "user:t" }} }}
  }} }}
  eval_config {{ confidence_key: "who" }}
  model_config {{
    feature_groups {{ group_name: "uih" group_type: JAGGED_SEQUENCE feature_names: "uih__i" }}
    feature_groups {{ group_name: "uih_timestamp" group_type: JAGGED_SEQUENCE
      feature_names: "uih__t" }}
    feature_groups {{ group_name: "uih_action" group_type: JAGGED_SEQUENCE
      feature_names: "uih__a" }}
    feature_groups {{ group_name: "candidate" group_type: JAGGED_SEQUENCE
      feature_names: "cand__i" }}
    feature_groups {{ group_name: "candidate_timestamp" group_type: JAGGED_SEQUENCE
      feature_names: "cand__t" }}
    dlrm_hstu {{ fusion_mtl_tower {{
      task_configs {{ task_name: "one" label_name: "cand__y" task_bitmask: 1 }}
      task_configs {{ task_name: "two" label_name: "cand__y" task_bitmask: 4 }}
      task_configs {{ task_name: "three" label_name: "done" num_class: 3 }}
    }} }}
  }}"""


@pytest.mark.parametrize("mode", ["FG_NONE", "FG_DAG", "FG_BUCKETIZE"])
def test_rows_of_every_kind_parse(mode: str) -> None:
    config = make_config(EVERYTHING.format(mode=mode))
    features = create_features(config)
    table = synthesise(config, features, ROWS, seed=1)
    assert table.num_rows == ROWS and "cost" in table.column_names
    (rows,) = table.combine_chunks().to_batches()
    batch = FeatureParser(config, features).parse(rows, make_source(ROWS))
    assert set(batch.ids) | set(batch.dense) == {f.name for f in features if not f.stub}
    assert batch.counters == {}
    for feature in features:
        if feature.name in batch.ids:
            values = batch.ids[feature.name].values
            assert values.numel() and int(values.min()) >= 0
            assert int(values.max()) < feature.num_embeddings
    times, actions, label = batch.dense["uih__t"], batch.dense["uih__a"], batch.labels["cand__y"]
    assert isinstance(times, Ragged) and isinstance(actions, Ragged) and isinstance(label, Ragged)
    assert times.values.dtype == torch.int64 and actions.values.dtype == torch.int64
    assert int(times.lengths.min()) == 0 and times.max_len == 8
    assert int(label.lengths.min()) >= 1 and set(label.values.tolist()) == {0, 1, 4, 5}
    done = batch.labels["done"]
    assert isinstance(done, Ragged) and set(done.values.tolist()) == {0, 1, 2}
    later = batch.dense["cand__t"]
    assert isinstance(later, Ragged)
    for row in range(ROWS):
        history = torch.split(times.values, times.lengths.tolist())[row].flatten()
        candidates = torch.split(later.values, later.lengths.tolist())[row].flatten()
        assert bool((history.diff() >= 0).all()) and bool((candidates.diff() >= 0).all())
        assert history.numel() == 0 or int(history.max()) <= int(candidates.min())


def test_the_seed_decides() -> None:
    config = make_config(EVERYTHING.format(mode="FG_DAG"))
    features = create_features(config)
    assert synthesise(config, features, 5, 3).equals(synthesise(config, features, 5, 3))
    assert not synthesise(config, features, 5, 3).equals(synthesise(config, features, 5, 4))
    table = synthesise(config, features, ROWS, 3, empty_histories=False)
    assert min(len(row) for row in table["uih__iid"].to_pylist()) >= 2


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_rows_of_foreign_configs_parse(path: Path) -> None:
    config = load_pipeline(str(path))
    features = create_features(config)
    (rows,) = synthesise(config, features, 16, 1).combine_chunks().to_batches()
    batch = FeatureParser(config, features).parse(rows, make_source(16))
    assert batch.num_rows == 16 and set(batch.labels) == set(config.data_config.label_fields)


def test_a_column_that_is_spoilt_is_noticed() -> None:
    config = make_config(EVERYTHING.format(mode="FG_NONE"))
    features = create_features(config)
    table = synthesise(config, features, 8)
    at = table.column_names.index("n")
    spoilt = table.set_column(at, "n", [np.full(8, 7)])
    (rows,) = spoilt.combine_chunks().to_batches()
    with pytest.raises(DataError, match="id 7"):
        FeatureParser(config, features).parse(rows, make_source(8))


def test_sequences_of_a_nested_group_have_equal_lengths() -> None:
    config = load_pipeline(next(path for path in TEXTS if path.stem == "mmoe_sequence"))
    features = create_features(config)
    (rows,) = synthesise(config, features, ROWS, 1).combine_chunks().to_batches()
    batch = FeatureParser(config, features).parse(rows, make_source(ROWS))
    paid, bought = batch.dense["paid"], batch.ids["buys"].seq_lengths
    assert isinstance(paid, Ragged) and bought is not None
    assert torch.equal(bought, paid.lengths) and paid.lengths.unique().numel() > 1


def test_sequences_over_one_column_have_one_length() -> None:
    """A second, shorter view of a history beside the whole of it."""
    config = make_config(
        """data_config { fg_mode: FG_DAG }
        feature_configs { sequence_feature { sequence_name: "uih" sequence_length: 30
          features { id_feature { feature_name: "i" expression: "item:i" num_buckets: 9
            embedding_dim: 4 } }
          features { raw_feature { feature_name: "t" expression: "user:t" } } } }
        feature_configs { sequence_id_feature { feature_name: "last" expression: "user:uih__i"
          sequence_length: 4 num_buckets: 5 embedding_dim: 4 } }"""
    )
    features = create_features(config)
    table = synthesise(config, features, ROWS, seed=2)
    assert table.column_names == ["uih__i", "uih__t"]
    (rows,) = table.combine_chunks().to_batches()
    batch = FeatureParser(config, features).parse(rows, make_source(ROWS))
    whole, last = batch.ids["uih__i"].seq_lengths, batch.ids["last"].seq_lengths
    assert whole is not None and last is not None
    assert torch.equal(last, whole.clamp(max=4)) and int(whole.max()) > 4
