# SPDX-License-Identifier: Apache-2.0
"""Sequences to codes to a bundle, and what is refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tzgen.errors import UserError
from tzgen.sid.cluster import cluster_items, codebook_beside
from tzgen.sid.jobs import bundle_job


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Items 100 .. 139 in two groups of taste; item 139 was never bought."""
    rng = np.random.default_rng(0)
    taste = rng.integers(0, 2, 80)
    rows = [(100 + 2 * rng.integers(0, 19, 5) + t).tolist() for t in taste]
    pq.write_table(
        pa.table({"uih__item_id": [r[:-1] for r in rows], "target_item_id": [r[-1] for r in rows]}),
        tmp_path / "train.parquet",
    )
    pq.write_table(pa.table({"item_id": rng.permutation(40) + 100}), tmp_path / "items.parquet")
    return tmp_path


def run(world: Path, **changes: Any) -> tuple[int, ...]:
    options: dict[str, Any] = {
        "sizes": (3, 2), "window": 4, "item_id_field": "item_id", "seed": 0,
        "history_field": "uih__item_id", "target_field": "target_item_id",
    }  # fmt: skip
    options |= changes
    train, items = world / "train.parquet", world / "items.parquet"
    return cluster_items(str(train), str(items), world / "codes", **options)


def test_codes_become_a_bundle_without_being_told_the_codebook(world: Path) -> None:
    codebook = run(world)
    assert codebook[:2] == (3, 2) and codebook_beside(str(world / "codes")) == codebook
    flags = argparse.Namespace(
        bundle_path=str(world / "sids"), generation="g", from_generation=None,
        codes_path=str(world / "codes"), item_id_field="item_id", code_field="codes",
        codebook=None, policy="none", capacity=1, suffix_size=None,
    )  # fmt: skip
    bundle = bundle_job(flags, {})
    assert bundle.table.item_id.to_pylist() == list(range(100, 140))
    assert len(np.unique(bundle.table.codes, axis=0)) == 40


def test_what_cannot_be_used_is_named(world: Path) -> None:
    with pytest.raises(UserError, match="no column 'history'"):
        run(world, history_field="history")
    with pytest.raises(UserError, match="is int64; expected a list"):
        run(world, history_field="target_item_id", target_field="none")
    pq.write_table(pa.table({"item_id": [100, 101, 102]}), world / "items.parquet")
    with pytest.raises(UserError, match="is not among the items"):
        run(world)
    pq.write_table(pa.table({"item_id": [*range(100, 140), 101]}), world / "items.parquet")
    with pytest.raises(UserError, match="item 101 has more than one row"):
        run(world)
    pq.write_table(pa.table({"item_id": [[1.0]] * 40}), world / "items.parquet")
    with pytest.raises(UserError, match="expected integers or text"):
        run(world)
    with pytest.raises(UserError, match="--window 0"):
        run(world, window=0)
    pq.write_table(pa.table({"item_id": range(100, 140)}), world / "items.parquet")
    with pytest.raises(UserError, match="41 clusters for 40 items"):
        run(world, sizes=(2, 41))
    assert not (world / "codes").exists()
    (world / "codes").mkdir()
    with pytest.raises(UserError, match="exists"):
        run(world)
