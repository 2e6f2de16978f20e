# SPDX-License-Identifier: Apache-2.0
"""Output is there whole, with its manifest last, or not at all."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from tzgen.data.readers import CsvDataset, ParquetDataset
from tzgen.data.writers import WRITERS, ParquetWriter, open_writer
from tzgen.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def rows(first: int, count: int) -> pa.RecordBatch:
    ids = list(range(first, first + count))
    return pa.RecordBatch.from_pydict({"id": ids, "score": [[i / 2, 1.0] for i in ids]})


def test_parts_manifest_and_reading_back(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with open_writer("ParquetWriter", str(path)) as writer:
        for first in range(0, 25_000, 1000):
            writer.write(rows(first, 1000))
        assert not path.exists(), "nothing shows before the commit"
        writer.commit({"config_hash": "abc"})
    assert names(path) == ["_manifest.json", "part-0.parquet"]
    assert names(tmp_path) == ["out"]
    manifest = json.loads((path / "_manifest.json").read_text())
    data = (path / "part-0.parquet").read_bytes()
    assert manifest == {
        "config_hash": "abc",
        "schema_version": 1,
        "rows": 25_000,
        "columns": [
            {"name": "id", "type": "int64"},
            {"name": "score", "type": "list<item: double>"},
        ],
        "parts": [
            {
                "file": "part-0.parquet",
                "rows": 25_000,
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        ],
    }
    reader = ParquetDataset(str(path))
    assert reader.files[0].group_rows == (10_000, 10_000, 5_000)
    assert reader.read_rows(0, 2).column("id")[-1].as_py() == 24_999


def test_text(tmp_path: Path) -> None:
    with open_writer("CsvWriter", str(tmp_path / "out")) as writer:
        writer.write(rows(0, 2))
        writer.write(rows(2, 1))
        writer.commit()
    assert (tmp_path / "out" / "part-0.csv").read_text().replace('"', "") == (
        "id,score\n0,0;1\n1,0.5;1\n2,1;1\n"
    )
    assert CsvDataset(str(tmp_path / "out"), with_header=True).num_rows == 3


def test_text_refuses_deeper_nesting(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="Write it with ParquetWriter"),
        open_writer("CsvWriter", str(tmp_path / "out")) as writer,
    ):
        writer.write(pa.RecordBatch.from_pydict({"x": [[[1]]]}))
    assert names(tmp_path) == []


@pytest.mark.parametrize("empty_rank", [None, 1])
def test_several_ranks(tmp_path: Path, empty_rank: int | None) -> None:
    barrier = threading.Barrier(3)
    path = tmp_path / "out"

    def work(rank: int) -> None:
        writer = open_writer(
            "ParquetWriter",
            str(path),
            rank=rank,
            world_size=3,
            barrier=lambda: barrier.wait(10) and None,
        )
        if rank != empty_rank:
            writer.write(rows(rank * 10, 10 + rank))
        writer.commit()
        assert (path / "_manifest.json").exists(), "a rank returns before the folder is published"

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    manifest = json.loads((path / "_manifest.json").read_text())
    want = [rank for rank in range(3) if rank != empty_rank]
    assert [part["file"] for part in manifest["parts"]] == [f"part-{r}.parquet" for r in want]
    assert manifest["rows"] == sum(10 + rank for rank in want)
    assert ParquetDataset(str(path)).num_rows == manifest["rows"]
    assert names(path) == ["_manifest.json", *[f"part-{r}.parquet" for r in want]]


def test_existing_output_is_kept_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "out"
    (path).mkdir()
    open_writer("ParquetWriter", str(path)).abort()  # an empty folder is no output
    (path / "precious").write_text("x")
    with pytest.raises(UserError, match="already holds something"):
        open_writer("ParquetWriter", str(path))
    writer = open_writer("ParquetWriter", str(path), overwrite=True)
    writer.write(rows(0, 1))
    assert (path / "precious").exists(), "the old output stays until the new one is complete"
    writer.commit()
    assert names(path) == ["_manifest.json", "part-0.parquet"]
    assert names(tmp_path) == ["out"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        open_writer("ParquetWriter", str(tmp_path / "out")) as writer,
    ):
        writer.write(rows(0, 5))
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_a_dead_attempt_is_cleared(tmp_path: Path) -> None:
    dead = open_writer("ParquetWriter", str(tmp_path / "out"), rank=0)
    dead.write(rows(0, 5))
    del dead  # killed before the commit
    (tmp_path / ".out.writing" / "part-7.parquet").write_text("left over")
    with open_writer("ParquetWriter", str(tmp_path / "out")) as writer:
        writer.write(rows(0, 5))
        writer.commit()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["_manifest.json", "part-0.parquet"]


def test_object_stores(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    try:
        with open_writer("ParquetWriter", "memory://bucket/out") as writer:
            writer.write(rows(0, 5))
            assert not memory.exists("/bucket/out/_manifest.json")
            writer.commit()
        written = sorted(Path(name).name for name in memory.ls("/bucket/out", detail=False))
        assert written == ["_manifest.json", "part-0.parquet"]
        assert ParquetDataset("memory://bucket/out").num_rows == 5
        with pytest.raises(UserError, match="already holds something"):
            open_writer("ParquetWriter", "memory://bucket/out")
        aborted = open_writer("ParquetWriter", "memory://bucket/two")
        aborted.write(rows(0, 5))
        aborted.abort()
        assert not memory.exists("/bucket/two/part-0.parquet")
    finally:
        memory.rm("/bucket", recursive=True)


def test_one_schema(tmp_path: Path) -> None:
    writer = open_writer("ParquetWriter", str(tmp_path / "out"))
    writer.write(rows(0, 1))
    with pytest.raises(ValueError, match="rows of schema"):
        writer.write(pa.RecordBatch.from_pydict({"other": [1]}))
    writer.abort()


def test_writer_types() -> None:
    assert list(WRITERS) == ["CsvWriter", "ParquetWriter"]
    assert WRITERS["ParquetWriter"] is ParquetWriter
    with pytest.raises(UserError, match="unknown writer_type 'ParquetWritr'; did you mean"):
        open_writer("ParquetWritr", "x")
