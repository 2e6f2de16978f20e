# SPDX-License-Identifier: Apache-2.0
"""What losses and metrics read of a batch, cut into the rows of its micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

from torch import Tensor

from tzgen.data.batch import Batch, Ragged
from tzgen.embeddings import row_bounds


def split_labels(batch: Batch, parts: int) -> list[Batch]:
    """`parts` batches holding labels, weights and raw ids of consecutive rows; ids are left out."""
    bounds = row_bounds(batch.num_rows, parts)
    pieces = []
    for low, high in pairwise(bounds):
        pieces.append(
            Batch(
                num_rows=high - low,
                labels=_rows(batch.labels, low, high),
                weights=_rows(batch.weights, low, high),
                raw_ids={name: value[low:high] for name, value in batch.raw_ids.items()},
            )
        )
    return pieces


def _rows(
    columns: Mapping[str, Tensor | Ragged], low: int, high: int
) -> dict[str, Tensor | Ragged]:
    cut: dict[str, Tensor | Ragged] = {}
    for name, value in columns.items():
        if isinstance(value, Ragged):
            start, stop = int(value.lengths[:low].sum()), int(value.lengths[:high].sum())
            cut[name] = replace(
                value, values=value.values[start:stop], lengths=value.lengths[low:high]
            )
        else:
            cut[name] = value[low:high]
    return cut
