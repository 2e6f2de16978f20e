# SPDX-License-Identifier: Apache-2.0
"""The batch predict loop: rows in, one output row for each, published only when all are written."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm

from tzgen.data.batch import Batch
from tzgen.data.loader import BatchLoader
from tzgen.data.writers import Writer
from tzgen.errors import UserError
from tzgen.log import LOGGER

LINE_SECONDS = 30.0


class Predictor(Protocol):
    """A pipeline with trained weights, or a loaded package."""

    def predict(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        """({output: [N] or [N, C]}, candidates per row int64 [B] or None)."""
        ...


def predict_all(
    predictor: Predictor,
    loader: BatchLoader,
    writer: Writer,
    *,
    device: torch.device,
    output_columns: Sequence[str] = (),
    max_batches: int | None = None,
    show: bool = True,
) -> int:
    """Write predictions for every row of `loader`; the number of rows written.

    Each output row holds the pass-through columns and one value, or one list of values aligned with
    the row's candidates, for each output. `output_columns` keeps some of the outputs. The writer is
    committed at the end and aborted on any error.
    """
    total = loader.num_batches(0)
    if max_batches is not None:
        total = max_batches if total is None else min(total, max_batches)
    rows = 0
    published = False
    try:
        batches = islice(loader.epoch(None, 0), max_batches)
        for batch in _shown(batches, total) if show else batches:
            if batch.num_rows:
                outputs, repeat = predictor.predict(batch.to(device))
                writer.write(to_rows(batch, _chosen(outputs, output_columns), repeat))
                rows += batch.num_rows
        writer.commit()
        published = True
    finally:
        if not published:  # whatever ended the job
            writer.abort()
    return rows


def _shown(batches: Iterator[Batch], total: int) -> Iterator[Batch]:
    """The same batches behind a bar on a terminal, elsewhere with a line every half minute."""
    if sys.stderr.isatty():
        yield from tqdm(batches, total=total, desc="predict", unit="batch")
        return
    said = time.monotonic()
    for number, batch in enumerate(batches, 1):
        yield batch
        if time.monotonic() - said >= LINE_SECONDS:
            said = time.monotonic()
            LOGGER.info("batch %d of %d predicted", number, total)


def to_rows(batch: Batch, outputs: dict[str, Tensor], repeat: Tensor | None) -> pa.RecordBatch:
    """Pass-through columns and outputs as one RecordBatch of `batch.num_rows` rows.

    outputs [N] or [N, C]; with `repeat` (int64 [B], summing to N) each row gets a list.
    """
    columns: dict[str, pa.Array] = {}
    if batch.passthrough is not None:
        columns.update(zip(batch.passthrough.schema.names, batch.passthrough.columns, strict=True))
    offsets = None
    if repeat is not None:
        ends = torch.cumsum(repeat.cpu(), 0)
        offsets = pa.array(torch.cat([ends.new_zeros(1), ends]).to(torch.int32).numpy())
    for name, value in outputs.items():
        array = _array(value)
        columns[name] = array if offsets is None else pa.ListArray.from_arrays(offsets, array)
    return pa.RecordBatch.from_pydict(columns)


def _array(value: Tensor) -> pa.Array:
    """Floats as float32, integers as they are; every dimension after the first nests lists."""
    flat = value.detach().cpu().contiguous()
    flat = flat.float() if flat.is_floating_point() else flat
    array = pa.array(flat.flatten().numpy())
    for size in reversed(flat.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def _chosen(outputs: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    if unknown := [name for name in names if name not in outputs]:
        raise UserError(f"--output_columns {unknown}: this model gives {sorted(outputs)}")
    return {name: outputs[name] for name in names} if names else outputs
