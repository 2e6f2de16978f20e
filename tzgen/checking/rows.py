# SPDX-License-Identifier: Apache-2.0
"""Where the one batch comes from: the first rows of the training data, or synthesised ones."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tzgen.build import Pipeline, num_tokens
from tzgen.data.batch import Batch
from tzgen.data.loader import BatchLoader
from tzgen.data.readers import Reader, open_reader
from tzgen.errors import DataError, UserError
from tzgen.features.synthesis import synthesise
from tzgen.protos import data_pb2

MOST_SYNTHESISED = 256
TOKEN_BUDGET = 20_000  # sequence steps that go through the model: seconds on two cores


@dataclass(frozen=True)
class Rows:
    """An opened input. `told`: (name, sentence) for the report."""

    reader: Reader
    batch_size: int
    synthetic: bool
    told: tuple[tuple[str, str], ...]


@contextmanager
def opened(pipeline: Pipeline, *, synthetic: bool) -> Iterator[Rows]:
    """train_input_path, or rows made up in a temporary folder that is gone afterwards.

    eval_input_path is opened too, so that both are refused at once.
    """
    config = pipeline.config
    if not synthetic:
        yield _real(pipeline)
        return
    with tempfile.TemporaryDirectory(prefix="tzgen-check-") as folder:
        wanted = min(config.data_config.batch_size, MOST_SYNTHESISED)
        path = Path(folder) / "rows.parquet"
        pq.write_table(synthesise(config, pipeline.features, wanted), path)
        reader = type(config.data_config)(dataset_type=data_pb2.DatasetType.ParquetDataset)
        told = f"{wanted} synthesised rows: shapes and costs are real, values mean nothing"
        yield Rows(
            open_reader(reader, str(path), pipeline.input_columns), wanted, True, (("rows", told),)
        )


def first_batch(pipeline: Pipeline, rows: Rows, batch_size: int) -> Batch:
    """The first rows in file order, read and parsed in this process."""
    loader = BatchLoader(rows.reader, parse=pipeline.parse, batch_size=batch_size)
    return next(iter(loader.epoch(None, 0)))


def affordable(batch: Batch) -> int:
    """How many of the rows may go through the model: all, unless their sequences are long."""
    tokens = num_tokens(batch)
    if tokens <= TOKEN_BUDGET:
        return batch.num_rows
    return max(batch.num_rows * TOKEN_BUDGET // tokens, 1)


def _real(pipeline: Pipeline) -> Rows:
    config, data = pipeline.config, pipeline.config.data_config
    found: dict[str, Reader] = {}
    wrong = []
    for name in ("train_input_path", "eval_input_path"):
        path = getattr(config, name)
        if not path:
            continue
        try:
            found[name] = open_reader(data, path, pipeline.input_columns)
        except (DataError, UserError) as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        hint = "To check everything but the data, add --synthetic."
        raise UserError("\n".join([*wrong, hint]))
    told = [(name, _counted(config, name, reader)) for name, reader in found.items()]
    return Rows(found["train_input_path"], data.batch_size, False, tuple(told))


def _counted(config: Any, name: str, reader: Reader) -> str:
    data = config.data_config
    text = f"{reader.num_rows:,} rows in {len(reader.files)} file(s)"
    if name == "eval_input_path":
        return text
    if data.batch_cost_size:
        return f"{text}; batches are cut by {data.sample_cost_field}, here by rows"
    rows = data.batch_size * max(config.train_config.gradient_accumulation_steps, 1)
    return f"{text}: {-(-reader.num_rows // rows):,} steps of {rows:,} rows an epoch on one device"
