# SPDX-License-Identifier: Apache-2.0
"""What travels from a loader worker to the model: tensors by name; Arrow only as pass-through.

B rows, L sequence steps of all rows together, T ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, laid end to end.

    values [L, ...] of any dtype, lengths int64 [B] summing to L. `max_len` is the longest row as a
    host number, set by the loader so that a forward never has to ask the device for it.
    """

    values: Tensor
    lengths: Tensor
    max_len: int

    @property
    def offsets(self) -> Tensor:
        """int64 [B + 1], from 0 to L."""
        zero = self.lengths.new_zeros(1)
        return torch.cat([zero, torch.cumsum(self.lengths, 0)])

    def with_values(self, values: Tensor) -> Ragged:
        """The same rows holding other values; shares `lengths`."""
        return replace(self, values=values)

    def map(self, move: Callable[[Tensor], Tensor]) -> Ragged:
        return replace(self, values=move(self.values), lengths=move(self.lengths))


@dataclass(frozen=True)
class Ids:
    """Embedding ids of one feature.

    values int64 [T]; lengths int64 [bags] = ids per bag; weights float32 [T] or None.
    A pooled feature has one bag a row (bags = B) and `seq_lengths` None. A sequence feature has one
    bag a step (bags = L) and `seq_lengths` int64 [B] says how many steps each row has.
    `max_len` is the longest sequence (steps), 0 for pooled features.
    """

    values: Tensor
    lengths: Tensor
    weights: Tensor | None = None
    seq_lengths: Tensor | None = None
    max_len: int = 0

    def map(self, move: Callable[[Tensor], Tensor]) -> Ids:
        def maybe(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else move(tensor)

        return replace(
            self,
            values=move(self.values),
            lengths=move(self.lengths),
            weights=maybe(self.weights),
            seq_lengths=maybe(self.seq_lengths),
        )


@dataclass(frozen=True)
class Position:
    """Where an epoch stands: `next_row` is the first row of the global order not yet consumed."""

    seed: int
    epoch: int
    next_row: int
    fingerprint: str


@dataclass(frozen=True)
class Source:
    """Where row i came from: `files[file_index[i]]`, row `row[i]` counted from the file's start."""

    files: tuple[str, ...]
    file_index: Tensor  # int32 [B]
    row: Tensor  # int64 [B]

    def describe(self, limit: int = 8) -> str:
        """'a.parquet rows 3, 7, ...; b.parquet rows 0' for error reports."""
        parts = []
        for index, name in enumerate(self.files):
            rows = self.row[self.file_index == index].tolist()
            if rows:
                shown = ", ".join(str(row) for row in rows[:limit])
                parts.append(f"{name} rows {shown}{', ...' if len(rows) > limit else ''}")
        return "; ".join(parts)


@dataclass
class Batch:
    """One batch of rows.

    ids     feature -> Ids (everything that is looked up in a table)
    dense   feature -> Tensor [B, value_dim] or Ragged [L, value_dim]; float32, or int64 where the
            column is integer and nothing rescales it (timestamps, action bitmasks)
    labels  field -> Tensor [B] or Ragged [L]; int64 for integer columns (bitmasks), else float32
    weights field -> Tensor [B] or Ragged [L] float32 (data_config.sample_weight_fields)
    raw_ids column -> Tensor [B] int64: ids before hashing that a loss or a metric groups by
            (`session_name`, `grouping_key`); strings as a stable 64-bit hash
    """

    num_rows: int
    ids: dict[str, Ids] = field(default_factory=dict)
    dense: dict[str, Tensor | Ragged] = field(default_factory=dict)
    labels: dict[str, Tensor | Ragged] = field(default_factory=dict)
    weights: dict[str, Tensor | Ragged] = field(default_factory=dict)
    raw_ids: dict[str, Tensor] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    source: Source | None = None
    position: Position | None = None
    passthrough: pa.RecordBatch | None = None

    def map(self, move: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with every device-bound tensor replaced by `move(tensor)`."""

        def one(value: Any) -> Any:
            return move(value) if isinstance(value, Tensor) else value.map(move)

        moved: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("ids", "dense", "labels", "weights", "raw_ids"):
            column: Mapping[str, Any] = moved[name]
            moved[name] = {key: one(value) for key, value in column.items()}
        return type(self)(**moved)

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self.map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)  # type: ignore[arg-type]
            return tensor

        self.map(record)
