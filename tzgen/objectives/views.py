# SPDX-License-Identifier: Apache-2.0
"""One task's share of a batch: labels, weights and grouping columns brought to the model's samples.

B rows, N samples (candidates where `Outputs.repeat` is set, else rows).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tzgen.config.tasks import TaskSpec
from tzgen.data.batch import Batch, Ragged
from tzgen.errors import UserError


@dataclass(frozen=True)
class Samples:
    """Which row each of `count` samples belongs to. `repeat` int64 [B]; None: one sample a row."""

    num_rows: int
    count: int
    repeat: Tensor | None
    raw_ids: Mapping[str, Tensor]

    def rows(self, device: torch.device) -> Tensor:
        """int64 [N]: the row of each sample."""
        index = torch.arange(self.num_rows, device=device)
        if self.repeat is None:
            return index
        return torch.repeat_interleave(index, self.repeat.to(device), output_size=self.count)

    def spread(self, per_row: Tensor) -> Tensor:
        """[B] -> [N]."""
        return per_row if self.repeat is None else per_row[self.rows(per_row.device)]

    def ids(self, name: str, reader: str) -> Tensor:
        """Raw ids of a column, int64 [N]; `reader` is the setting that names the column."""
        if name not in self.raw_ids:
            raise UserError(
                f"{reader} is {name!r}: this batch has no such column; it has "
                f"{sorted(self.raw_ids) or 'none'}. Name a feature or a column of the input."
            )
        return self.spread(self.raw_ids[name])


def samples_of(batch: Batch, task: TaskSpec, logits: Tensor, repeat: Tensor | None) -> Samples:
    """The samples that `logits` [N, ...] are about."""
    return Samples(batch.num_rows, logits.size(0), repeat, batch.raw_ids)


def label_of(task: TaskSpec, batch: Batch, samples: Samples) -> Tensor:
    """The label of each sample, [N]: the column, or 0/1 int64 where the task has a bitmask."""
    return target_of(task, _column(task, batch.labels, task.label_name, "label_name", samples))


def target_of(task: TaskSpec, column: Tensor) -> Tensor:
    """What the task learns from its label column: the column, or whether it has the task's bits."""
    if not task.task_bitmask:
        return column
    if column.is_floating_point():
        raise UserError(
            f"task {task.name!r}: label {task.label_name!r} is {column.dtype}; task_bitmask needs "
            "integers. Store the column as int64."
        )
    return (column & task.task_bitmask).ne(0).long()


def weight_of(task: TaskSpec, batch: Batch, samples: Samples) -> Tensor | None:
    """float32 [N]: sample weight times the weight of the task's space; None where all are 1."""
    weight = None
    if task.sample_weight_name:
        name = task.sample_weight_name
        weight = _column(task, batch.weights, name, "sample_weight_name", samples).float()
    if task.task_space_indicator_label:
        name = task.task_space_indicator_label
        inside = _column(task, batch.labels, name, "task_space_indicator_label", samples) > 0
        space = _space_weight(task, inside)
        weight = space if weight is None else weight * space
    return weight


def _space_weight(task: TaskSpec, inside: Tensor) -> Tensor:
    yes = torch.full_like(inside, task.in_task_space_weight, dtype=torch.float32)
    return torch.where(inside, yes, torch.full_like(yes, task.out_task_space_weight))


def _column(
    task: TaskSpec, columns: Mapping[str, Tensor | Ragged], name: str, field: str, samples: Samples
) -> Tensor:
    """A label or weight column as [N]. A weight or indicator with one value a row is repeated.

    Raises UserError naming the task and the sizes where the column does not fit the samples.
    """
    if name not in columns:
        known = ", ".join(sorted(columns)) or "none"
        raise UserError(
            f"task {task.name!r}: {field} {name!r} is not in the batch, which has: {known}. "
            "List it in data_config.label_fields (or sample_weight_fields)."
        )
    column = columns[name]
    values = column.values if isinstance(column, Ragged) else column
    values = values.reshape(-1) if values.dim() == 2 and values.size(1) == 1 else values
    per_row = samples.repeat is not None and not isinstance(column, Ragged)
    if per_row and field != "label_name" and values.size(0) == samples.num_rows:
        return samples.spread(values)
    if values.dim() != 1 or values.size(0) != samples.count:
        raise UserError(
            f"task {task.name!r}: {field} {name!r} has {tuple(values.shape)} values for "
            f"{samples.count} samples of {samples.num_rows} rows. A label has one value for each "
            "candidate (or one a row, where rows are samples): check the columns' lengths."
        )
    if isinstance(column, Ragged):
        _same_lengths(task, column, name, samples)
    return values


def _same_lengths(task: TaskSpec, column: Ragged, name: str, samples: Samples) -> None:
    """Equal totals may hide rows that differ. On the host only: a device would have to wait."""
    repeat = samples.repeat
    if column.lengths.device.type != "cpu" or (repeat is not None and repeat.device.type != "cpu"):
        return
    expected = torch.ones_like(column.lengths) if repeat is None else repeat
    if not torch.equal(column.lengths, expected):
        row = int((column.lengths != expected).nonzero()[0])
        raise UserError(
            f"task {task.name!r}: {name!r} has {int(column.lengths[row])} values in row {row} of "
            f"the batch, which has {int(expected[row])} candidates. The columns must be aligned."
        )
