# SPDX-License-Identifier: Apache-2.0
"""The job behind `python -m tzgen.sid embed`: item rows in, the same rows with a vector out.

    <output>/part-<n>.parquet     one for each row group of the input, whole or absent
    <output>/_manifest.json       last
    <output>-encoder/             what tfidf_svd learnt, where it was fitted: for items that come
                                  later (tfidf.py)

A run that was killed goes on where it stopped: parts that are there are kept while input, encoder
and options are the same (`_job.json`), and refused else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from tzgen.data.readers import ParquetDataset
from tzgen.errors import DataError, UserError
from tzgen.sid.encoders import Encoder, check_encoder, make_encoder
from tzgen.sid.folder import checksum, sync, write_json, write_manifest
from tzgen.sid.rows import LARGEST_OFFSET, equal_lists
from tzgen.sid.tfidf import NAME as FITTED
from tzgen.sid.tfidf import TfidfSvd, stored_manifest

JOB, MANIFEST = "_job.json", "_manifest.json"
BATCH = 256


def embed_items(
    input_path: str,
    output: Path,
    *,
    encoder: str,
    dim: int,
    encoder_path: Path | None,
    text_field: str,
    vector_field: str,
    seed: int,
) -> int:
    """Write every row of `input_path` with `vector_field` (list of float32) beside it; the number
    of rows. Raises UserError when `output` holds another job's parts."""
    reader = ParquetDataset(input_path)
    _check_columns(reader, text_field, vector_field)
    check_encoder(encoder, dim=dim)
    job = {
        "input": reader.fingerprint,
        "encoder": encoder,
        "encoder_path": None if encoder_path is None else str(encoder_path),
        "dim": dim,
        "text_field": text_field,
        "vector_field": vector_field,
        "seed": seed,
    }
    if encoder == FITTED and encoder_path is not None:
        job["encoder_sha256"] = stored_manifest(encoder_path, dim=dim)["checksums"]
    if _is_done(output, job):
        return reader.num_rows
    store = output.parent / f"{output.name}-encoder"
    fits = encoder == FITTED and encoder_path is None
    if fits:
        _require_same_fit(store, job)
    _begin(output, job)
    groups = [(f, g) for f, info in enumerate(reader.files) for g in range(len(info.group_rows))]
    missing = [place for place, _ in enumerate(groups) if not _part(output, place).is_file()]
    if missing:
        most = max(rows for info in reader.files for rows in info.group_rows)
        if fits and not store.exists():
            learnt = TfidfSvd(dim, seed=seed)
            learnt.fit(_all_texts(reader, groups, text_field))
            learnt.save(store, _fitted_on(job))
        made = make_encoder(encoder, dim=dim, path=store if fits else encoder_path)
        for place in tqdm(missing, desc=f"embed with {encoder}", unit="row group"):
            rows = reader.read_rows(*groups[place])
            vectors = _encode(made, _texts(rows[text_field]))
            _refuse_nan(vectors, reader.files[groups[place][0]].path, groups[place][1])
            column = equal_lists(vectors, large=most * made.dim > LARGEST_OFFSET)
            _write(_part(output, place), rows, vector_field, column)
    _finish(output, job, len(groups), reader.num_rows)
    return reader.num_rows


def _check_columns(reader: ParquetDataset, text_field: str, vector_field: str) -> None:
    where = reader.files[0].path
    if text_field not in reader.schema.names:
        raise UserError(
            f"--text_field {text_field!r}: {where} has the columns {', '.join(reader.schema.names)}"
        )
    kind = reader.schema.field(text_field).type
    if not _is_text(kind.value_type if _is_list(kind) else kind):
        raise UserError(f"--text_field {text_field!r} of {where} is {kind}; expected text")
    if vector_field in reader.schema.names:
        raise UserError(
            f"--vector_field {vector_field!r} is a column of {where} already: the items bring "
            "vectors and can be used as they are, or give the new ones another name"
        )


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _fitted_on(job: dict[str, Any]) -> dict[str, Any]:
    return {name: job[name] for name in ("input", "text_field", "dim", "seed")}


def _require_same_fit(store: Path, job: dict[str, Any]) -> None:
    """An encoder that lies where this job would leave its own must be the same."""
    if not store.exists():
        return
    before, wanted = stored_manifest(store).get("fitted_on", {}), _fitted_on(job)
    changed = [name for name, value in wanted.items() if before.get(name) != value]
    if changed:
        raise UserError(
            f"{store} holds an encoder of another job ({', '.join(changed)} differ): name another "
            f"--output, or remove it; or embed with it: --encoder_path {store}"
        )


def _all_texts(
    reader: ParquetDataset, groups: Sequence[tuple[int, int]], text_field: str
) -> list[str]:
    texts: list[str] = []
    for file, group in groups:
        texts += _texts(reader.read_rows(file, group, [text_field])[text_field])
    return texts


def _texts(column: pa.Array) -> list[str]:
    """Null is empty text; a list of words is joined by blanks."""
    if _is_list(column.type):
        column = pc.binary_join(column.cast(pa.list_(pa.string())), " ")
    found: list[str] = pc.fill_null(column, "").to_pylist()
    return found


def _encode(encoder: Encoder, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    parts = [encoder(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
    return np.concatenate(parts) if parts else np.zeros((0, encoder.dim), np.float32)


def _refuse_nan(vectors: np.ndarray[Any, Any], path: str, group: int) -> None:
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise DataError(
            file=path,
            row_group=group,
            row=int(bad.argmax()),
            found="a vector with NaN or infinity",
            expected="finite numbers",
            remedy="Look at the text of this row, or choose another encoder.",
        )


def _write(path: Path, rows: pa.RecordBatch, name: str, column: pa.Array) -> None:
    table = pa.Table.from_batches([rows]).append_column(name, column)
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial, compression="zstd")
    sync(partial)
    partial.replace(path)


def _part(output: Path, place: int) -> Path:
    return output / f"part-{place:05d}.parquet"


def _is_done(output: Path, job: dict[str, Any]) -> bool:
    path = output / MANIFEST
    return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["job"] == job


def _begin(output: Path, job: dict[str, Any]) -> None:
    """Note what the parts will be of; parts of something else are refused."""
    note = output / JOB
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; expected a folder to write: name another")
    there = [path for path in _entries(output) if path != note]
    if note.is_file() and there:
        before = json.loads(note.read_text(encoding="utf-8"))
        if before != job:
            changed = [name for name in job if before.get(name) != job[name]]
            raise UserError(
                f"{output} holds parts of another job ({', '.join(changed)} differ): name another "
                "--output, or remove it"
            )
    elif there:
        raise UserError(f"{output} holds {there[0].name}, which no such job wrote: name another")
    output.mkdir(parents=True, exist_ok=True)
    write_json(note, job)


def _entries(output: Path) -> Iterator[Path]:
    yield from sorted(output.iterdir()) if output.is_dir() else ()


def _finish(output: Path, job: dict[str, Any], parts: int, rows: int) -> None:
    names = [_part(output, place).name for place in range(parts)]
    digests = {name: checksum(output / name) for name in names}
    body = {"schema_version": 1, "job": job, "rows": rows, "sha256": digests}
    write_manifest(output / MANIFEST, body)
