# SPDX-License-Identifier: Apache-2.0
"""Rows that say which they are, and a stand-in for the feature parser."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from tzgen.data.batch import Batch, Ragged, Source


def table(first: int, rows: int) -> pa.Table:
    """`id` counts rows over all files; `items` of row i holds i % 5 values, each i."""
    ids = np.arange(first, first + rows)
    return pa.table(
        {
            "id": pa.array(ids),
            "items": pa.array([[int(i)] * (i % 5) for i in ids], pa.list_(pa.int64())),
            "cost": pa.array(ids % 7 + 1),
            "word": pa.array([f"w{i % 3}" for i in ids]),
        }
    )


def parse(rows: pa.RecordBatch, source: Source) -> Batch:
    """Ids as a label, items as a Ragged; stands for the feature parser."""
    ids = torch.tensor(rows.column("id").to_numpy(zero_copy_only=False).copy())
    items = rows.column("items")
    lengths = torch.tensor(items.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64))
    values = torch.tensor(items.flatten().to_numpy(zero_copy_only=False).copy())
    longest = int(lengths.max()) if len(lengths) else 0
    return Batch(
        num_rows=rows.num_rows,
        labels={"id": ids, "items": Ragged(values, lengths, longest)},
        source=source,
        passthrough=rows.select(["word"]),
    )
