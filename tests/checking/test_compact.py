# SPDX-License-Identifier: Apache-2.0
"""Small tables give the vectors that the full ones give."""

from __future__ import annotations

from pathlib import Path

import torch

from checking.worlds import CPU, HSTU, hstu_rows, world
from tzgen.build import build_pipeline
from tzgen.checking.compact import compact
from tzgen.checking.rows import first_batch, opened
from tzgen.data.batch import Batch, Ids, Ragged
from tzgen.embeddings import EmbeddingGroup, LocalTables
from tzgen.features import create_features


def tables_of(group: EmbeddingGroup) -> LocalTables:
    assert isinstance(group.tables, LocalTables)
    return group.tables


def test_groups_equal_those_of_full_tables(tmp_path: Path) -> None:
    config, _ = world(tmp_path, HSTU, hstu_rows())
    pipeline = build_pipeline(config, engine="local")
    with opened(pipeline, synthetic=False) as rows:
        batch = first_batch(pipeline, rows, 4)
    features, small = compact(pipeline.features, batch)
    full = pipeline.module.embeddings
    cut = EmbeddingGroup(
        features, config.model_config.feature_groups, engine="local", device=CPU, seed=5
    )
    # the shared table is read by history and candidates: the union of their ids, in order
    used = {"item": [1, 2, 3, *range(6, 12), 40, 49], "user_emb": [0, 3, 5, 8]}
    used["city_emb"] = [0, 1, 2, 6]
    for name, ids in used.items():
        weight = tables_of(cut).weights[name]
        assert weight.size(0) == len(ids)
        weight.data.copy_(tables_of(full).weights[name].data[ids])
    expected, got = full(batch), cut(small)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        other = got[name]
        if isinstance(value, Ragged):
            assert isinstance(other, Ragged) and torch.equal(value.lengths, other.lengths)
            value, other = value.values, other.values
        assert isinstance(other, torch.Tensor) and torch.equal(value, other), name


def test_the_batch_that_was_read_is_left_alone(tmp_path: Path) -> None:
    config, _ = world(tmp_path, HSTU, hstu_rows())
    pipeline = build_pipeline(config, engine="local")
    with opened(pipeline, synthetic=False) as rows:
        batch = first_batch(pipeline, rows, 4)
    before = {name: ids.values.clone() for name, ids in batch.ids.items()}
    compact(pipeline.features, batch)
    assert all(torch.equal(batch.ids[name].values, values) for name, values in before.items())


def test_tables_without_ids(tmp_path: Path) -> None:
    config, _ = world(tmp_path, HSTU, None)
    features = create_features(config)
    nothing = torch.zeros(0, dtype=torch.int64)
    small, _ = compact(features, Batch(0, ids={"user": Ids(nothing, nothing)}))
    sizes = {f.table.name: f.table.num_embeddings for f in small if f.table is not None}
    assert sizes == {"item": 50, "user_emb": 1, "city_emb": 7}, "unread tables stay, none is empty"


def test_half_precision_tables_become_trainable(tmp_path: Path) -> None:
    config, _ = world(tmp_path, HSTU, hstu_rows())
    config.feature_configs[3].id_feature.data_type = "FP16"
    pipeline = build_pipeline(config, engine="local")
    with opened(pipeline, synthetic=False) as rows:
        batch = first_batch(pipeline, rows, 4)
    features, _ = compact(pipeline.features, batch)
    assert {f.table.data_type for f in features if f.table is not None} == {"FP32"}
