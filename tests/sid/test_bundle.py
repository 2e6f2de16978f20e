# SPDX-License-Identifier: Apache-2.0
"""Bundles: what is written is read, appends move nothing, and what is broken is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tzgen.errors import UserError
from tzgen.sid import rows
from tzgen.sid.bundle import Bundle, open_bundle, write_bundle
from tzgen.sid.collisions import resolve
from tzgen.sid.space import SidSpace
from tzgen.sid.table import SidTable, make_table, merged_table, resolved_table

SPACE = SidSpace((6, 5))


def catalogue(
    first: int, last: int, policy: str = "suffix", taken: SidTable | None = None
) -> SidTable:
    rng = np.random.default_rng(first)
    ids = np.arange(first, last)
    codes = rng.integers(0, 5, (len(ids), 2))
    made = make_table(pa.array(ids), codes, SPACE)
    found = resolve(
        made.codes, SPACE, policy, suffix_size=30 if policy == "suffix" else 0,
        taken=None if taken is None else taken.codes,
    )  # fmt: skip
    return resolved_table(made, found)


def publish(root: Path, generation: str = "one", policy: str = "suffix") -> Bundle:
    return write_bundle(
        root,
        generation,
        catalogue(0, 40, policy),
        policy=policy,
        capacity=1,
        notes={"input_hash": "x"},
    )


@pytest.mark.parametrize("policy", ["suffix", "none"])
def test_what_was_written_is_read(tmp_path: Path, policy: str) -> None:
    written = publish(tmp_path, policy=policy)
    read = open_bundle(tmp_path / "one")
    assert read.table.item_id.equals(written.table.item_id)
    for name in ("codes", "origin", "slot"):
        assert np.array_equal(getattr(read.table, name), getattr(written.table, name))
    assert read.table.sid_hash == read.manifest["sid_hash"]
    assert read.manifest["input_hash"] == "x"
    leaves = read.table.trie.find(torch.from_numpy(read.table.codes))
    assert (leaves >= 0).all()
    assert read.table.trie.codes_of(leaves).tolist() == read.table.codes.tolist()


def test_the_reverse_map_holds_every_item_once_under_its_id(tmp_path: Path) -> None:
    bundle = publish(tmp_path, policy="none")
    rows = pq.read_table(tmp_path / "one" / "sid_to_items").to_pylist()
    found = {item: tuple(row["codebook"]) for row in rows for item in row["itemids"]}
    ids = bundle.table.item_id.to_pylist()
    assert found == dict(zip(ids, map(tuple, bundle.table.codes.tolist()), strict=True))
    assert len({tuple(row["codebook"]) for row in rows}) == len(rows)
    assert bundle.manifest["max_observed_items_per_sid"] == max(len(r["itemids"]) for r in rows)
    tokens = pq.read_table(tmp_path / "one" / "item_to_sid")["offset_codebook"].to_pylist()
    assert tokens == (bundle.table.codes + np.array([0, 6])).tolist()


def test_large_lists_are_written_where_they_must_be_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = publish(tmp_path, policy="none")
    monkeypatch.setattr(rows, "LARGEST_OFFSET", 30)  # 40 items, of three codes each
    large = publish(tmp_path, "two", policy="none")
    assert large.table.sid_hash == small.table.sid_hash
    for name, column in (("item_to_sid", "codebook"), ("sid_to_items", "itemids")):
        tables = [pq.read_table(tmp_path / g / name) for g in ("one", "two")]
        assert pa.types.is_large_list(tables[1].schema.field(column).type)
        assert tables[0][column].to_pylist() == tables[1][column].to_pylist()


def test_an_append_moves_nothing_and_says_what_is_new(tmp_path: Path) -> None:
    before = publish(tmp_path)
    new = catalogue(40, 60, taken=before.table)
    both = merged_table(before.table, new)
    after = write_bundle(
        tmp_path, "two", both, policy="suffix", capacity=1, notes={}, appended=(before, new)
    )
    assert len(after.table) == 60
    assert np.array_equal(after.table.codes[:40], before.table.codes)
    assert len(np.unique(after.table.codes, axis=0)) == 60
    delta = pq.read_table(tmp_path / "two" / "delta_item_to_sid")
    assert sorted(delta["item_id"].to_pylist()) == list(range(40, 60))
    touched = pq.read_table(tmp_path / "two" / "delta_sid_to_items")
    assert touched.num_rows == 20
    assert after.lineage == (before.table.sid_hash, after.table.sid_hash)
    assert after.manifest["since_bundle_uuid"] == before.manifest["bundle_uuid"]
    after.require_descends_from(before.table.sid_hash, "the model")
    with pytest.raises(UserError, match="the model was made with"):
        before.require_descends_from(after.table.sid_hash, "the model")


def test_a_generation_is_never_overwritten(tmp_path: Path) -> None:
    publish(tmp_path)
    with pytest.raises(UserError, match="never changed"):
        publish(tmp_path)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("tzgen.sid.bundle.write_manifest", broken)
    with pytest.raises(OSError, match="disk full"):
        publish(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_broken_bundles_are_named(tmp_path: Path) -> None:
    publish(tmp_path)
    with pytest.raises(UserError, match="generations one: name one"):
        open_bundle(tmp_path)
    (tmp_path / "two").mkdir()
    with pytest.raises(UserError, match="never finished"):
        open_bundle(tmp_path / "two")
    damaged = tmp_path / "damaged"
    shutil.copytree(tmp_path / "one", damaged)
    (damaged / "trie.safetensors").write_bytes(b"xx")
    with pytest.raises(UserError, match=r"trie\.safetensors is missing or damaged"):
        open_bundle(damaged)
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    del manifest["codebook"]
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="lacks codebook"):
        open_bundle(damaged)
    (damaged / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        open_bundle(damaged)


def test_a_torcheasyrec_bundle_opens(tmp_path: Path) -> None:
    """Its manifest has fewer keys, absolute locations, and no trie; rows lie in any order."""
    folder = tmp_path / "gen1"
    (folder / "item_to_sid").mkdir(parents=True)
    rows = pa.table(
        {
            "item_id": pa.array(["b", "a", "c"]),
            "origin_codebook": pa.array([[1, 2], [1, 2], [0, 0]], pa.list_(pa.int64())),
            "codebook": pa.array([[1, 3], [1, 2], [0, 0]], pa.list_(pa.int64())),
            "index": pa.array([0, 0, 0]),
            "offset_codebook": pa.array([[1, 9], [1, 8], [0, 6]], pa.list_(pa.int64())),
        }
    )
    pq.write_table(rows, folder / "item_to_sid" / "part-0.parquet")
    manifest = {
        "bundle_uuid": "u", "codebook": [6, 5], "capacity": 1, "max_observed_items_per_sid": 1,
        "artifacts": {"item_to_sid": {"save_type": "parquet", "rows": 3, "location": "/elsewhere"}},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    bundle = open_bundle(folder)
    assert bundle.table.item_id.to_pylist() == ["a", "b", "c"]
    assert bundle.table.codes.tolist() == [[1, 2], [1, 3], [0, 0]]
    assert bundle.table.trie.num_items == 3
    bundle.require_descends_from(bundle.table.sid_hash, "the model")


def test_a_folder_that_is_not_there_and_codes_that_are_text_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"two does not exist: .*<bundle_path>/<generation>"):
        open_bundle(tmp_path / "two")
    publish(tmp_path)
    manifest = tmp_path / "one" / "manifest.json"
    body = json.loads(manifest.read_text())
    del body["checksums"]
    manifest.write_text(json.dumps(body))
    file = tmp_path / "one" / "item_to_sid" / "part-0.parquet"
    rows = pq.read_table(file)
    texts = [",".join(map(str, row)) for row in rows["codebook"].to_pylist()]
    at = rows.schema.get_field_index("codebook")
    pq.write_table(rows.set_column(at, "codebook", pa.array(texts)), file)
    with pytest.raises(UserError, match="is string; expected a list of integers"):
        open_bundle(tmp_path / "one")
