# SPDX-License-Identifier: Apache-2.0
"""Rows in, rows with vectors out; a killed job goes on; another job's parts are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tzgen.errors import DataError, UserError
from tzgen.sid import embed
from tzgen.sid.embed import embed_items
from tzgen.sid.rows import matrix

from .test_tfidf import texts


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "items.parquet"
    table = pa.table({"item_id": list(range(50)), "text": [*texts(49), None]})
    pq.write_table(table, path, row_group_size=20)
    return path


def run(items: Path, **changes: Any) -> Path:
    output = items.parent / "out"
    options: dict[str, Any] = {
        "encoder": "tfidf_svd", "dim": 6, "encoder_path": None, "text_field": "text",
        "vector_field": "vec", "seed": 0,
    }  # fmt: skip
    assert embed_items(str(items), output, **(options | changes)) == 50
    return output


def test_every_row_gets_a_vector(items: Path) -> None:
    output = run(items)
    table = pq.read_table(output)
    assert table["item_id"].to_pylist() == list(range(50))
    vectors = np.array(table["vec"].to_pylist())
    assert vectors.shape == (50, 6) and np.all(vectors[49] == 0)
    manifest = json.loads((output / "_manifest.json").read_text())
    assert manifest["rows"] == 50 and len(manifest["sha256"]) == 3


def test_a_killed_job_goes_on_and_ends_the_same(
    items: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pq.read_table(run(items)).to_pydict()
    output = items.parent / "out"
    (output / "_manifest.json").unlink()
    (output / "part-00001.parquet").unlink()
    kept = (output / "part-00000.parquet").stat().st_mtime_ns
    run(items)
    assert (output / "part-00000.parquet").stat().st_mtime_ns == kept
    assert pq.read_table(output).to_pydict() == whole
    monkeypatch.setattr(embed, "make_encoder", lambda *a, **k: pytest.fail("nothing is left to do"))
    run(items)


def test_items_that_come_later_land_in_the_same_space(items: Path, tmp_path: Path) -> None:
    """Item 7 comes alone, beside items that nobody has seen; its vector is the one it had."""
    vectors = np.array(pq.read_table(run(items))["vec"].to_pylist(), np.float32)
    store, later = tmp_path / "out-encoder", tmp_path / "later"
    rows = pa.table({"item_id": [7, 90], "text": [texts(49)[7], "blue soap"]})
    pq.write_table(rows, tmp_path / "new.parquet")
    options: dict[str, Any] = {
        "encoder": "tfidf_svd", "dim": 6, "encoder_path": store, "text_field": "text",
        "vector_field": "vec", "seed": 0,
    }  # fmt: skip
    assert embed_items(str(tmp_path / "new.parquet"), later, **options) == 2
    found = np.array(pq.read_table(later)["vec"].to_pylist(), np.float32)
    np.testing.assert_array_equal(found[0], vectors[7])
    assert found[1].any() and not (tmp_path / "later-encoder").exists()
    with pytest.raises(UserError, match="--dim 5: the encoder in"):
        embed_items(str(tmp_path / "new.parquet"), tmp_path / "x", **(options | {"dim": 5}))
    assert not (tmp_path / "x").exists()
    (later / "_manifest.json").unlink()
    body = json.loads((store / "manifest.json").read_text())
    body["checksums"] = {"encoder.safetensors": "of another"}
    (store / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(UserError, match=r"another job \(encoder_sha256 differ\)"):
        embed_items(str(tmp_path / "new.parquet"), later, **options)


def test_a_killed_job_goes_on_with_the_encoder_that_it_stored(items: Path) -> None:
    output = run(items)
    whole, store = pq.read_table(output).to_pydict(), output.with_name("out-encoder")
    written = (store / "encoder.safetensors").stat().st_mtime_ns
    shutil.rmtree(output)
    assert pq.read_table(run(items)).to_pydict() == whole
    assert (store / "encoder.safetensors").stat().st_mtime_ns == written
    shutil.rmtree(output)
    with pytest.raises(UserError, match=r"holds an encoder of another job \(seed differ\)"):
        run(items, seed=1)
    assert not output.exists()


def test_all_parts_have_the_list_that_the_largest_row_group_needs(
    items: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "LARGEST_OFFSET", 100)  # 20 rows of 6; the last has 10
    output = run(items)
    types = {pq.read_schema(part).field("vec").type for part in output.glob("*.parquet")}
    assert len(types) == 1 and pa.types.is_large_list(types.pop())
    assert len(matrix(pq.read_table(output)["vec"], "vec", np.float32)) == 50


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.large_string())])
def test_a_list_of_words_is_a_text(tmp_path: Path, kind: pa.DataType) -> None:
    """As `attributes` of the prepared items, a large list."""
    rows = {"text": [*texts(48), "", ""]}
    words: list[list[str] | None] = [text.split() for text in texts(48)]
    columns = {"whole": rows["text"], "words": pa.array([*words, [], None], kind)}
    found = []
    for name in columns:
        (tmp_path / name).mkdir()
        path = tmp_path / name / "items.parquet"
        pq.write_table(pa.table({"item_id": range(50), **columns}), path)
        found.append(pq.read_table(run(path, text_field=name))["vec"])
    assert found[0].equals(found[1])


def test_a_job_that_left_no_part_is_in_nobodys_way(
    items: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise UserError("no such package")

    with monkeypatch.context() as patch:
        patch.setattr(embed, "make_encoder", broken)
        with pytest.raises(UserError, match="no such package"):
            run(items, encoder="wordllama")
    run(items)
    (items.parent / "file").write_text("x")
    with pytest.raises(UserError, match="is a file; expected a folder"):
        embed_items(
            str(items), items.parent / "file", encoder="tfidf_svd", dim=3, encoder_path=None,
            text_field="text", vector_field="vec", seed=0,
        )  # fmt: skip


def test_other_parts_are_refused(items: Path) -> None:
    output = run(items)
    (output / "_manifest.json").unlink()
    with pytest.raises(UserError, match=r"another job \(dim differ\)"):
        run(items, dim=7)
    (output / "_job.json").unlink()
    with pytest.raises(UserError, match="which no such job wrote"):
        run(items)


def test_wrong_columns_and_vectors_are_named(items: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="has the columns item_id, text"):
        run(items, text_field="title")
    with pytest.raises(UserError, match=r"is a column of .* already: .* another name"):
        run(items, vector_field="item_id")
    with pytest.raises(UserError, match=r"'item_id' of .* is int64; expected text"):
        run(items, text_field="item_id")
    for encoder, dim, text in (("bert", 6, "expected one of"), ("tfidf_svd", 0, "--dim 0")):
        with pytest.raises(UserError, match=text):
            run(items, encoder=encoder, dim=dim)
    assert not (items.parent / "out").exists()

    class Broken:
        dim = 2

        def __call__(self, texts: list[str]) -> np.ndarray:
            return np.full((len(texts), 2), np.nan, np.float32)

    monkeypatch.setattr(embed, "make_encoder", lambda *a, **k: Broken())
    with pytest.raises(DataError, match=r"row group 0, row 0: found a vector with NaN"):
        run(items)
