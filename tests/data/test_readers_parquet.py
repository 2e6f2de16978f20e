# SPDX-License-Identifier: Apache-2.0
"""Parquet input: what is accepted, and for everything else an error that says where and what."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_rows import parse, table

from tzgen.data.loader import BatchLoader
from tzgen.data.readers import READERS, ParquetDataset, open_reader
from tzgen.errors import DataError, UserError
from tzgen.protos import data_pb2


def test_counts_schema_and_random_access(parquet: Callable[..., str]) -> None:
    reader = ParquetDataset(parquet(), columns=["items", "id"])
    assert reader.num_rows == 201
    assert [info.name for info in reader.files] == ["f0.parquet", "f1.parquet", "f2.parquet"]
    assert [info.num_rows for info in reader.files] == [100, 37, 64]
    assert reader.files[1].group_rows == (16, 16, 5)
    assert reader.schema == pa.schema([("items", pa.list_(pa.int64())), ("id", pa.int64())])
    rows = reader.read_rows(1, 2)
    assert rows.schema == reader.schema
    assert rows.column("id").to_pylist() == [132, 133, 134, 135, 136]
    assert reader.read_rows(2, 0, ["cost"]).column_names == ["cost"]


def test_globs_lists_and_folders(parquet: Callable[..., str], tmp_path: Path) -> None:
    folder = parquet()
    nested = tmp_path / "rows" / "dt=1"
    nested.mkdir()
    shutil.copy(f"{folder}/f1.parquet", nested / "g.parquet")
    for hidden in ("_SUCCESS.parquet", ".f.parquet", "notes.txt"):
        (tmp_path / "rows" / hidden).write_text("not data")
    assert ParquetDataset(f"{folder}/f*.parquet").num_rows == 201
    assert ParquetDataset(f"{folder}/f[01].parquet").num_rows == 137
    assert ParquetDataset(f"{folder}/f2.parquet, {folder}/f0.parquet").num_rows == 164
    assert ParquetDataset(f"{folder}/f2.parquet,{folder}/f0.parquet").files[0].name == "f2.parquet"
    whole = ParquetDataset(folder)
    assert [info.name for info in whole.files] == [
        "dt=1/g.parquet",
        "f0.parquet",
        "f1.parquet",
        "f2.parquet",
    ]
    assert ParquetDataset(f"{tmp_path}/**/g.parquet").num_rows == 37
    assert ParquetDataset(f"{tmp_path}/row?").num_rows == whole.num_rows
    assert ParquetDataset(f"file://{folder}/f0.parquet").num_rows == 100


def test_any_fsspec_url(parquet: Callable[..., str]) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(parquet(), "/bucket/rows", recursive=True)
    try:
        reader = ParquetDataset("memory://bucket/rows/*.parquet", columns=["id", "items", "word"])
        assert reader.fingerprint == ParquetDataset(parquet()).fingerprint
        for workers in (0, 1, 2):
            loader = BatchLoader(reader, parse=parse, batch_size=70, num_workers=workers)
            got = [batch.labels["id"].tolist() for batch in loader.epoch(None, 0)]
            assert list(chain(*got)) == list(range(201))
    finally:
        memory.rm("/bucket", recursive=True)


def test_fingerprint_is_of_the_data_not_the_place(
    parquet: Callable[..., str], tmp_path: Path
) -> None:
    folder = parquet()
    before = ParquetDataset(folder)
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert ParquetDataset(str(tmp_path / "elsewhere")).fingerprint == before.fingerprint
    assert ParquetDataset(folder, columns=["id"]).fingerprint == before.fingerprint
    prints = {before.fingerprint}
    prints.add(ParquetDataset(f"{folder}/f0.parquet").fingerprint)
    pq.write_table(table(0, 100), f"{folder}/f0.parquet", row_group_size=17)
    prints.add(ParquetDataset(folder).fingerprint)
    shutil.move(f"{folder}/f0.parquet", f"{folder}/f9.parquet")
    prints.add(ParquetDataset(folder).fingerprint)
    assert len(prints) == 4


def test_a_pickled_reader_reads(parquet: Callable[..., str]) -> None:
    reader = ParquetDataset(parquet())
    rows = reader.read_rows(0, 1)
    assert pickle.loads(pickle.dumps(reader)).read_rows(0, 1).equals(rows)


def test_many_files_are_not_held_open(tmp_path: Path) -> None:
    for k in range(40):
        pq.write_table(table(k, 1), tmp_path / f"{k:02}.parquet")
    reader = ParquetDataset(str(tmp_path))
    assert [reader.read_rows(k, 0).column("id")[0].as_py() for k in range(40)] == list(range(40))
    assert len(reader._open) <= 16


KINDS = {
    "list_list": pa.array([[[1], []], None]),
    "large_list": pa.array([[1], None], pa.large_list(pa.int64())),
    "large_string": pa.array(["a", None], pa.large_string()),
    "dictionary": pa.array(["a", None]).dictionary_encode(),
    "map": pa.array([[("a", 1.0)], None], pa.map_(pa.string(), pa.float64())),
    "null": pa.nulls(2),
    "float": pa.array([1.0, None], pa.float32()),
}
LONGS = pa.list_(pa.int64())


@pytest.mark.parametrize("name", KINDS)
def test_types_are_passed_on_as_they_are(name: str, tmp_path: Path) -> None:
    for k in range(2):
        pq.write_table(pa.table({"x": KINDS[name]}), tmp_path / f"{k}.parquet")
    reader = ParquetDataset(str(tmp_path))
    assert reader.schema.field("x").type == KINDS[name].type
    assert reader.read_rows(1, 0).column("x").to_pylist() == KINDS[name].to_pylist()


@pytest.mark.parametrize(
    ("one", "other", "agreed"),
    [
        (KINDS["null"], KINDS["float"], pa.float32()),
        (KINDS["float"], KINDS["null"], pa.float32()),
        (KINDS["dictionary"], pa.array(["b", "c"]), pa.string()),
        (pa.array(["b", "c"]), KINDS["dictionary"], pa.string()),
        (KINDS["large_list"], pa.array([[2], []]), pa.list_(pa.int64())),
        (pa.array([[], None], pa.list_(pa.null())), pa.array([[2], []]), pa.list_(pa.int64())),
        (pa.array([1, None], pa.int32()), pa.array([2**40, 2]), pa.int64()),
        (pa.array([[2**40], []]), pa.array([[2], None], pa.large_list(pa.uint32())), LONGS),
        (KINDS["float"], pa.array([0.1, None]), pa.float64()),
    ],
    ids=str,
)
def test_files_that_say_the_same_differently(
    one: pa.Array, other: pa.Array, agreed: pa.DataType, tmp_path: Path
) -> None:
    for k, column in enumerate((one, other)):
        pq.write_table(pa.table({"x": column}), tmp_path / f"{k}.parquet")
    reader = ParquetDataset(str(tmp_path))
    assert reader.schema.field("x").type == agreed
    for k, column in enumerate((one, other)):
        rows = reader.read_rows(k, 0)
        assert rows.schema.field("x").type == agreed
        assert rows.column("x").to_pylist() == column.to_pylist()


def test_a_declared_type_fills_an_all_null_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": pa.nulls(2), "y": [1, 2]}), tmp_path / "a.parquet")
    config = data_pb2.DataConfig(
        dataset_type=data_pb2.ParquetDataset, input_fields_str="x:ARRAY<BIGINT>;z:STRING"
    )
    reader = open_reader(config, str(tmp_path), ["x"])
    assert reader.schema.field("x").type == pa.list_(pa.int64())
    assert reader.read_rows(0, 0).column("x").to_pylist() == [None, None]
    config.input_fields_str = "y:STRING"
    with pytest.raises(
        DataError, match=r"column 'y': found int64; expected string, as data_config"
    ):
        open_reader(config, str(tmp_path))


@pytest.mark.parametrize(
    ("column", "declared", "kind"),
    [
        (pa.array([1, None, -3], pa.int32()), "BIGINT", pa.int64()),
        (pa.array([[1], None, []], pa.list_(pa.int16())), "ARRAY<BIGINT>", LONGS),
        (pa.array([1, 2, None], pa.uint8()), "INT32", pa.int32()),
        (pa.array([0.5, None, 2], pa.float32()), "DOUBLE", pa.float64()),
        (pa.array([["a"], None, []], pa.large_list(pa.large_string())), "ARRAY<STRING>", None),
    ],
    ids=str,
)
def test_a_declared_wider_type_is_taken(
    column: pa.Array, declared: str, kind: pa.DataType | None, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"x": column}), tmp_path / "a.parquet")
    config = data_pb2.DataConfig(
        dataset_type=data_pb2.ParquetDataset, input_fields_str=f"x:{declared}"
    )
    rows = open_reader(config, str(tmp_path)).read_rows(0, 0)
    assert kind is None or rows.schema.field("x").type == kind
    assert rows.column("x").to_pylist() == column.to_pylist()


@pytest.mark.parametrize(
    ("column", "declared"),
    [
        (pa.array([1, 2]), "INT"),
        (pa.array([[1], []]), "ARRAY<INT>"),
        (pa.array([1, 2], pa.uint64()), "BIGINT"),
        (pa.array([1, 2], pa.uint32()), "INT"),
        (pa.array([0.1, 2.0]), "FLOAT"),
        (pa.array([1, 2], pa.int32()), "DOUBLE"),
        (pa.array([1, 2]), "STRING"),
    ],
    ids=str,
)
def test_a_declared_type_that_would_lose_values_is_refused(
    column: pa.Array, declared: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"x": column}), tmp_path / "a.parquet")
    config = data_pb2.DataConfig(
        dataset_type=data_pb2.ParquetDataset, input_fields_str=f"x:{declared}"
    )
    with pytest.raises(DataError, match=r"column 'x': found .*, as data_config.input_fields"):
        open_reader(config, str(tmp_path))


# Failures. Every one names the file and says what to do; none is a bare Arrow error.


def test_a_missing_column_names_the_nearest(parquet: Callable[..., str]) -> None:
    with pytest.raises(DataError, match="Did you mean 'items'") as error:
        ParquetDataset(parquet(), columns=["id", "itens"])
    assert error.value.file.endswith("f0.parquet")
    assert error.value.column == "itens"


def test_a_column_missing_in_a_later_file(parquet: Callable[..., str]) -> None:
    folder = parquet()
    pq.write_table(table(0, 5).drop_columns(["cost"]), f"{folder}/f9.parquet")
    assert ParquetDataset(folder, columns=["id"]).num_rows == 206
    with pytest.raises(DataError) as error:
        ParquetDataset(folder, columns=["cost"])
    assert error.value.file.endswith("f9.parquet")


def test_a_type_that_differs_between_files(parquet: Callable[..., str]) -> None:
    folder = parquet()
    pq.write_table(pa.table({"id": ["x"]}), f"{folder}/f9.parquet")
    with pytest.raises(DataError) as error:
        ParquetDataset(folder)
    assert error.value.file.endswith("f9.parquet")
    assert (error.value.column, error.value.found) == ("id", "string")
    assert error.value.expected.startswith("int64, as in ")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all", b"PAR1" + b"\0" * 100])
def test_what_is_not_parquet(content: bytes, parquet: Callable[..., str]) -> None:
    folder = parquet()
    Path(folder, "f1.parquet").write_bytes(content)
    with pytest.raises(DataError, match="damaged, still being written, or not Parquet") as error:
        ParquetDataset(folder)
    assert error.value.file.endswith("f1.parquet")


def test_a_truncated_file(parquet: Callable[..., str]) -> None:
    path = Path(parquet(), "f1.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="readable footer"):
        ParquetDataset(str(path))


def test_a_corrupt_row_group_names_group_and_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(0, 2000).drop_columns(["items"]), path, row_group_size=1000)
    reader = ParquetDataset(str(path))
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    assert reader.read_rows(0, 0).num_rows == 1000
    with pytest.raises(DataError, match="Write the file again") as error:
        reader.read_rows(0, 1)
    assert (error.value.file, error.value.row_group) == (str(path), 1)
    assert error.value.column == column.path_in_schema == "cost"


def test_a_file_that_vanishes(parquet: Callable[..., str]) -> None:
    reader = ParquetDataset(parquet())
    shutil.rmtree(parquet())
    with pytest.raises(DataError) as error:
        reader.read_rows(2, 1)
    assert (error.value.file, error.value.row_group) == (reader.files[2].path, 1)


def test_no_rows(tmp_path: Path) -> None:
    pq.write_table(table(0, 0), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="0 rows"):
        ParquetDataset(str(tmp_path))
    pq.write_table(table(0, 3), tmp_path / "b.parquet")
    assert ParquetDataset(str(tmp_path)).num_rows == 3


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("{}/nothing*.parquet", "f0.parquet, f1.parquet, f2.parquet"),
        ("{}/x.parquet", "f0.parquet"),
        ("{}/no/such/folder", "f0.parquet"),
    ],
)
def test_no_match_shows_what_is_there(
    parquet: Callable[..., str], pattern: str, found: str
) -> None:
    pattern = pattern.format(parquet())
    with pytest.raises(DataError) as error:
        ParquetDataset(pattern)
    assert error.value.file == pattern
    assert found in error.value.found


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("", "is empty|names nothing"),
        (" , ", "is empty|names nothing"),
        ("{0}/f0.parquet,{0}/f*.parquet", "twice"),
        ("{0}/f0.parquet,memory://x", "mixes kinds of storage"),
        ("nosuchscheme://x/y", "unknown URL scheme"),
    ],
)
def test_senseless_paths(parquet: Callable[..., str], path: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        ParquetDataset(path.format(parquet()))


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"])
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="2 columns of that name"):
        ParquetDataset(str(tmp_path))


def test_an_unknown_dataset_type_lists_the_known() -> None:
    assert {"ParquetDataset", "CsvDataset"} <= set(READERS)
    with pytest.raises(UserError, match=r"unknown dataset_type .* Known: .*ParquetDataset"):
        READERS["ParquetDatasets"]
