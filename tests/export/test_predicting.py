# SPDX-License-Identifier: Apache-2.0
"""One output row for each input row, lists aligned with candidates, all or nothing."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from tzgen.data.batch import Batch
from tzgen.errors import UserError
from tzgen.export.predicting import predict_all, to_rows


class Rows:
    """A loader of given batches."""

    def __init__(self, *batches: Batch) -> None:
        self._batches = batches

    def num_batches(self, epoch: int) -> int:
        return len(self._batches)

    def epoch(self, position, epoch: int):
        yield from self._batches


class Kept:
    """A writer that remembers."""

    def __init__(self) -> None:
        self.rows: list[pa.RecordBatch] = []
        self.ended = ""

    def write(self, rows: pa.RecordBatch) -> None:
        self.rows.append(rows)

    def commit(self) -> None:
        self.ended = "committed"

    def abort(self) -> None:
        self.ended = "aborted"


class Scores:
    """probs = row number, no candidates."""

    def predict(self, batch: Batch):
        return {"probs": torch.arange(float(batch.num_rows)), "y": torch.ones(batch.num_rows)}, None


def rows_of(num_rows: int) -> Batch:
    ids = pa.RecordBatch.from_pydict({"user": list(range(num_rows))})
    return Batch(num_rows=num_rows, passthrough=ids)


CPU = torch.device("cpu")


def test_lists_align_with_candidates() -> None:
    batch = rows_of(3)
    outputs = {
        "probs": torch.tensor([0.1, 0.2, 0.3]),
        "c": torch.tensor([[1.0, 2], [3, 4], [5, 6]]),
    }
    rows = to_rows(batch, outputs, torch.tensor([2, 0, 1]))
    assert rows.column("user").to_pylist() == [0, 1, 2]
    assert [len(row) for row in rows.column("probs").to_pylist()] == [2, 0, 1]
    assert rows.column("c").to_pylist() == [[[1, 2], [3, 4]], [], [[5, 6]]]


def test_without_candidates_one_value_a_row() -> None:
    rows = to_rows(rows_of(2), {"probs": torch.tensor([0.5, 0.25])}, None)
    assert rows.column("probs").to_pylist() == [0.5, 0.25]


def test_all_rows_then_commit() -> None:
    writer = Kept()
    count = predict_all(
        Scores(), Rows(rows_of(2), rows_of(0), rows_of(3)), writer, device=CPU, show=False
    )
    assert count == 5 and writer.ended == "committed"
    assert [batch.num_rows for batch in writer.rows] == [2, 3]


def test_chosen_outputs_and_a_limit() -> None:
    writer = Kept()
    predict_all(
        Scores(),
        Rows(rows_of(2), rows_of(3)),
        writer,
        device=CPU,
        output_columns=["y"],
        max_batches=1,
        show=False,
    )
    assert writer.rows[0].schema.names == ["user", "y"] and len(writer.rows) == 1


def test_an_unknown_output_is_named_and_nothing_is_published() -> None:
    writer = Kept()
    with pytest.raises(UserError, match=r"nope.*probs"):
        predict_all(
            Scores(), Rows(rows_of(1)), writer, device=CPU, output_columns=["nope"], show=False
        )
    assert writer.ended == "aborted"
