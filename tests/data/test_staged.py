# SPDX-License-Identifier: Apache-2.0
"""Batches cut from a larger one equal batches parsed one by one."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from tzgen.data.batch import Batch, Ids, Ragged, Source
from tzgen.data.staged import Staged, parse_parts, split_batch
from tzgen.errors import DataError

ROWS = 23
SIZES = [[23], [1] * 23, [5, 0, 7, 11], [0, 23, 0], [0, 0, 22, 1]]


def source(rows: int) -> Source:
    return Source(("a", "b"), torch.arange(rows, dtype=torch.int32) % 2, torch.arange(rows))


def rows() -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"row": list(range(ROWS))})


def parse(record_batch: pa.RecordBatch, place: Source) -> Batch:
    """Every form that a field of a Batch can have; row r has r % 4 steps, step s has s % 3 ids."""
    row = torch.tensor(record_batch.column("row").to_pylist(), dtype=torch.int64)
    steps = row % 4
    of_step = torch.cat(
        [torch.arange(int(n)) + int(r) for r, n in zip(row, steps, strict=True)] or [row]
    )
    longest = int(steps.max()) if len(steps) else 0
    bag = of_step % 3
    values = torch.repeat_interleave(of_step * 10, bag)
    history = Ids(values, bag, values.float(), steps, longest)
    single = Ids(of_step, torch.ones_like(of_step), None, steps, longest)
    pooled = Ids(torch.repeat_interleave(row, row % 3), row % 3, None)
    return Batch(
        num_rows=len(row),
        ids={"history": history, "single": single, "pooled": pooled},
        dense={
            "matrix": row[:, None] * torch.ones(1, 3),
            "series": Ragged(of_step[:, None], steps, longest),
        },
        labels={"label": row, "labels": Ragged(of_step, steps, longest)},
        weights={"weight": row.float()},
        raw_ids={"user": row * 7},
        counters={"truncated/history": len(row)},
        source=place,
        passthrough=record_batch,
    )


def same(a: object, b: object, path: str = "batch") -> None:
    assert type(a) is type(b), path
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), path  # type: ignore[attr-defined]
    elif isinstance(a, dict):
        assert list(a) == list(b), path  # type: ignore[call-overload]
        for key in a:
            same(a[key], b[key], f"{path}.{key}")  # type: ignore[index]
    elif isinstance(a, Batch | Ids | Ragged | Source):
        for field in fields(a):
            if field.name != "counters":
                same(getattr(a, field.name), getattr(b, field.name), f"{path}.{field.name}")
    else:
        assert a == b, path


def one_by_one(sizes: list[int]) -> list[Batch]:
    starts = np.cumsum([0, *sizes])
    whole = source(ROWS)
    return [
        parse(
            rows().slice(start, size),
            Source(
                whole.files, whole.file_index[start : start + size], whole.row[start : start + size]
            ),
        )
        for start, size in zip(starts.tolist(), sizes, strict=False)
    ]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_parts_equal_batches_parsed_one_by_one(sizes: list[int]) -> None:
    want = one_by_one(sizes)
    cut = split_batch(parse(rows(), source(ROWS)), sizes)
    staged = list(parse_parts(Staged(parse), rows(), source(ROWS), sizes))
    plain = list(parse_parts(parse, rows(), source(ROWS), sizes))
    for got in (cut, staged, plain):
        assert len(got) == len(sizes)
        for a, b in zip(got, want, strict=True):
            same(a, b)
    assert sum(batch.counters.get("truncated/history", 0) for batch in staged) == ROWS


def test_what_features_share_stays_shared() -> None:
    cut = split_batch(parse(rows(), source(ROWS)), [10, 13])
    for part in cut:
        assert part.ids["history"].seq_lengths is part.ids["single"].seq_lengths
        assert part.ids["single"].seq_lengths is part.labels["labels"].lengths  # type: ignore[union-attr]


@dataclass
class Extended(Batch):
    extra: int = 0


def extend(batch: Batch) -> Batch:
    return Extended(**{f.name: getattr(batch, f.name) for f in fields(Batch)}, extra=batch.num_rows)


def test_finish_sees_each_batch() -> None:
    staged = Staged(parse, extend)
    parts = list(parse_parts(staged, rows(), source(ROWS), [10, 13]))
    assert [part.extra for part in parts] == [10, 13]  # type: ignore[attr-defined]
    alone = staged(rows(), source(ROWS))
    assert isinstance(alone, Extended)
    with pytest.raises(TypeError, match="a Extended cannot be cut"):
        split_batch(alone, [10, 13])


def test_an_error_comes_after_the_good_batches() -> None:
    calls = []

    def refuse(record_batch: pa.RecordBatch, place: Source) -> Batch:
        calls.append(record_batch.num_rows)
        if 17 in record_batch.column("row").to_pylist():
            raise DataError(file="a", row=17, found="17", expected="less", remedy="None.")
        return parse(record_batch, place)

    parts = parse_parts(Staged(refuse), rows(), source(ROWS), [10, 5, 8])
    assert [next(parts).num_rows for _ in range(2)] == [10, 5]
    with pytest.raises(DataError, match="row 17"):
        next(parts)
    assert calls == [23, 10, 5, 8]
