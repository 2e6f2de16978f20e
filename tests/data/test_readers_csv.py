# SPDX-License-Identifier: Apache-2.0
"""Text input: the same rows as Parquet, any number of files and blocks, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from sample_rows import table

from tzgen.data.readers import CsvDataset, ParquetDataset, open_reader
from tzgen.data.readers.csv import count_lines
from tzgen.data.readers.types import arrow_type, input_fields
from tzgen.errors import DataError, UserError
from tzgen.protos import data_pb2


def rows_of(reader: CsvDataset | ParquetDataset) -> pa.Table:
    return pa.Table.from_batches(
        [
            reader.read_rows(file, group)
            for file, info in enumerate(reader.files)
            for group in range(len(info.group_rows))
        ]
    )


@pytest.mark.parametrize("block_bytes", [16, 100, 1 << 20])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("delimiter", [",", "\t", "\x01"])
def test_equals_parquet(tmp_path: Path, block_bytes: int, header: bool, delimiter: str) -> None:
    whole = table(0, 120).drop_columns(["items"])
    options = pacsv.WriteOptions(include_header=header, delimiter=delimiter, quoting_style="none")
    for k, (start, stop) in enumerate([(0, 50), (50, 51), (51, 120)]):
        part = whole.slice(start, stop - start)
        pacsv.write_csv(part, tmp_path / f"{k}.csv", options)
        pq.write_table(part, tmp_path / f"{k}.parquet")
    fields = {"id": None, "cost": pa.int64(), "word": None}
    reader = CsvDataset(
        str(tmp_path),
        fields={} if header else fields,
        delimiter=delimiter,
        with_header=header,
        block_bytes=block_bytes,
    )
    assert reader.num_rows == 120
    assert rows_of(reader).equals(rows_of(ParquetDataset(str(tmp_path))))


def test_columns_and_data_config(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1;x;0.5\n2;y;1.5\n")
    config = data_pb2.DataConfig(
        dataset_type=data_pb2.CsvDataset,
        delimiter=";",
        input_fields_str="id:INT; word:STRING; score:FLOAT;",
    )
    reader = open_reader(config, str(tmp_path), ["score", "id"])
    assert reader.schema == pa.schema([("score", pa.float32()), ("id", pa.int32())])
    assert reader.read_rows(0, 0).to_pydict() == {"score": [0.5, 1.5], "id": [1, 2]}


def test_compressed_and_windows_line_ends_and_no_last_newline(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.csv.gz", "wb") as file:
        file.write(b"id,word\r\n1,x\r\n\r\n2,y")
    reader = CsvDataset(str(tmp_path), with_header=True, block_bytes=4)
    assert rows_of(reader).to_pydict() == {"id": [1, 2], "word": ["x", "y"]}
    (tmp_path / "a.csv.gz").unlink()
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbfid,word\r\n1,x\r\n\r\n2,y")
    assert rows_of(CsvDataset(str(tmp_path), with_header=True, block_bytes=4)).to_pydict() == {
        "id": [1, 2],
        "word": ["x", "y"],
    }


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (b"", 0),
        (b"\n", 0),
        (b"\r\n", 0),
        (b"a", 1),
        (b"a\n", 1),
        (b"a\nb", 2),
        (b"\n\na\r\n\r\nb\n\n", 2),
        (b"\r\na\r\n", 1),
    ],
)
def test_count_lines(text: bytes, lines: int) -> None:
    assert count_lines(text) == lines


def test_headers_may_order_columns_differently(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,word\n1,x\n")
    (tmp_path / "b.csv").write_text("word,id\ny,2\n")
    reader = CsvDataset(str(tmp_path), with_header=True)
    assert rows_of(reader).to_pydict() == {"id": [1, 2], "word": ["x", "y"]}


def test_quoted_cells(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,word\n1,"a,b"\n2,"c ""d"""\n')
    reader = CsvDataset(str(tmp_path), with_header=True)
    assert rows_of(reader).to_pydict() == {"id": [1, 2], "word": ["a,b", 'c "d"']}


def failure(path: Path, text: str, read: bool = True, **options: object) -> DataError:
    (path / "a.csv").write_text(text)
    with pytest.raises(DataError) as error:
        reader = CsvDataset(str(path / "a.csv"), with_header=True, **options)  # type: ignore[arg-type]
        assert read
        rows_of(reader)
    assert error.value.file == str(path / "a.csv")
    return error.value


def test_a_cell_of_the_wrong_type_names_block_and_column(tmp_path: Path) -> None:
    text = "id,word\n" + "".join(f"{i},x\n" for i in range(10)) + "oops,x\n"
    error = failure(tmp_path, text, block_bytes=16)
    assert (error.row_group, error.column) == (3, "id")
    assert "oops" in error.found
    assert "input_fields" in error.remedy


def test_a_column_empty_at_first_must_be_declared(tmp_path: Path) -> None:
    text = "id,word\n" + "1,\n" * 10 + "2,7\n"
    error = failure(tmp_path, text, block_bytes=16)
    assert error.column == "word"
    (tmp_path / "a.csv").write_text(text)
    reader = CsvDataset(
        str(tmp_path), with_header=True, block_bytes=16, fields={"word": pa.int64()}
    )
    assert rows_of(reader).column("word").to_pylist() == [None] * 10 + [7]


def test_lines_with_too_few_cells(tmp_path: Path) -> None:
    error = failure(tmp_path, "id,word\n1,x\n2\n", fields={"id": pa.int64(), "word": pa.string()})
    assert "Expected 2 columns, got 1" in error.found
    assert (error.row_group, error.column) == (0, None)


def test_line_breaks_inside_cells_are_refused(tmp_path: Path) -> None:
    failure(tmp_path, 'id,word\n1,"a\nb"\n2,c\n')


@pytest.mark.parametrize(
    ("text", "found"),
    [("", "an empty file"), ("id,word\n", "0 rows"), ("id,id\n1,2\n", "2 columns of that name")],
)
def test_files_without_rows_or_sense(tmp_path: Path, text: str, found: str) -> None:
    assert found in failure(tmp_path, text, read=False).found


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00\n\xff\n")
    with pytest.raises(DataError, match="UTF-8"):
        CsvDataset(str(tmp_path), with_header=True)
    (tmp_path / "a.csv.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match=r"a\.csv\.gz"):
        CsvDataset(str(tmp_path / "a.csv.gz"), with_header=True)


def test_a_missing_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,word\n1,x\n")
    with pytest.raises(DataError, match="Did you mean 'word'"):
        CsvDataset(str(tmp_path), columns=["wrd"], with_header=True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"delimiter": ",,", "with_header": True}, "one ASCII"),
        ({}, "does not know its columns"),
        ({"with_header": True, "fields": {"x": pa.list_(pa.int64())}}, "holds a scalar"),
    ],
)
def test_senseless_options(tmp_path: Path, options: dict, match: str) -> None:
    with pytest.raises(UserError, match=match):
        CsvDataset(str(tmp_path), **options)


def test_every_field_type_has_an_arrow_type() -> None:
    for name in data_pb2.FieldType.keys():  # noqa: SIM118 - a protobuf enum is no mapping
        kind = arrow_type(name)
        assert pa.types.is_map(kind) == name.startswith("MAP")
        assert pa.types.is_list(kind) == name.startswith("ARRAY")
    assert arrow_type("array<array<bigint>>") == pa.list_(pa.list_(pa.int64()))
    assert arrow_type("MAP< STRING, INT >") == pa.map_(pa.string(), pa.int32())
    assert arrow_type("ARRAY_DOUBLE") == pa.list_(pa.float64())
    for wrong in ("", "INT65", "ARRAY", "MAP<STRING>", "STRING STRING"):
        with pytest.raises(UserError, match="unknown column type"):
            arrow_type(wrong)


def test_declared_fields() -> None:
    config = data_pb2.DataConfig()
    config.input_fields.add(input_name="a", input_type=data_pb2.INT32)
    config.input_fields.add(input_name="b")
    assert input_fields(config) == {"a": pa.int32(), "b": None}
    config.input_fields_str = "c:INT"
    with pytest.raises(UserError, match="both set"):
        input_fields(config)
    with pytest.raises(UserError, match="expected name:TYPE"):
        input_fields(data_pb2.DataConfig(input_fields_str="c"))
