# SPDX-License-Identifier: Apache-2.0
"""How a metric accumulates: as sums, or as the rows themselves; both merge over ranks and resample.

N samples of a task's batch, U users of an evaluation, S bootstrap samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tzgen.config.tasks import TaskSpec
from tzgen.objectives.views import Samples

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Resampler = Callable[[F64], float]  # how often each user was drawn [U] -> the metric's value
FOLD = 1 << 20  # rows kept on the device before they move to the host


@dataclass(frozen=True)
class TaskView:
    """What a metric sees of a batch: raw outputs, the number to rank by, labels, which rows.

    logits [N] or [N, C]; score [N], None with more than two classes; label [N].
    """

    task: TaskSpec
    logits: Tensor
    score: Tensor | None
    label: Tensor
    samples: Samples

    @property
    def scores(self) -> Tensor:
        assert self.score is not None, f"task {self.task.name!r} has no single score"
        return self.score

    @property
    def rows(self) -> Tensor:
        return self.samples.rows(self.label.device)


class Rows:
    """Columns of equal length that grow batch by batch; the host holds all but the newest rows."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}
        self._pending = 0

    def append(self, columns: Mapping[str, Tensor]) -> None:
        for name, column in columns.items():
            self._parts.setdefault(name, []).append(column.detach())
            self._pending += column.size(0)
        if self._pending > FOLD * max(len(columns), 1):
            self._fold()

    def state(self) -> dict[str, Tensor]:
        self._fold()
        return {name: parts[0] for name, parts in self._parts.items()}

    def load(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Replace the rows by those of all `states`, in order; a state may have none."""
        names = dict.fromkeys(name for state in states for name in state)
        self._parts = {name: [state[name] for state in states if name in state] for name in names}
        self._fold()

    def columns(self) -> dict[str, NDArray[np.generic]]:
        return {name: column.numpy() for name, column in self.state().items()}

    def _fold(self) -> None:
        self._parts = {name: [torch.cat(parts).cpu()] for name, parts in self._parts.items()}
        self._pending = 0


class Metric(ABC):
    """One number of one task. `name` is what it is reported under, before the task's suffix."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def update(self, view: TaskView, users: Tensor | None = None) -> None:
        """Add a batch. `users` int64 [N], given where intervals are asked for, are kept."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything accumulated, on the host."""

    @abstractmethod
    def load(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Become the union of the states."""

    @abstractmethod
    def compute(self) -> float:
        """The value; NaN where it is undefined (one class only, no rows)."""

    def resampler(self, index: Callable[[I64], I64]) -> Resampler | None:
        """The value as a function of user multiplicities [U]; None where no users were kept.

        `index` turns user ids into places in [0, U).
        """
        return None

    def users(self) -> I64:
        """The users of the kept rows, in any order, repeated."""
        return np.zeros(0, dtype=np.int64)


class SumMetric(Metric):
    """A function of sums over samples, or over rows where `per_row`."""

    per_row = False

    def __init__(self, name: str, width: int = 2) -> None:
        super().__init__(name)
        self.sums = torch.zeros(width, dtype=torch.float64)
        self._rows = Rows()

    @abstractmethod
    def contributions(self, view: TaskView) -> Tensor:
        """float64 [N, width], or [B, width] where `per_row`: what each sample or row adds."""

    @abstractmethod
    def value(self, sums: F64) -> float:
        """The metric from the sums [width]."""

    def update(self, view: TaskView, users: Tensor | None = None) -> None:
        added = self.contributions(view).detach()
        self.add(added.sum(0))
        if users is not None:
            self.keep(added, users, view)

    def keep(self, added: Tensor, users: Tensor, view: TaskView) -> None:
        """Remember contributions with their users: one for a row's samples, none for empty rows."""
        if self.per_row:
            rows = view.rows
            per_row, present = (
                users.new_zeros(len(added)),
                torch.zeros(len(added), dtype=torch.bool),
            )
            per_row[rows], present = users, present.to(rows.device).index_fill(0, rows, True)
            added, users = added[present], per_row[present]
        self._rows.append({"values": added, "users": users})

    def add(self, sums: Tensor) -> None:
        self.sums = self.sums.to(sums.device) + sums

    def state(self) -> dict[str, Tensor]:
        return {"sums": self.sums.cpu(), **self._rows.state()}

    def load(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        self.sums = torch.stack([state["sums"] for state in states]).sum(0)
        rows = [{k: v for k, v in state.items() if k != "sums"} for state in states]
        self._rows.load(rows)

    def compute(self) -> float:
        return self.value(self.sums.cpu().numpy())

    def users(self) -> I64:
        columns = self._rows.columns()
        return np.asarray(columns.get("users", np.zeros(0)), dtype=np.int64)

    def resampler(self, index: Callable[[I64], I64]) -> Resampler | None:
        columns = self._rows.columns()
        if not columns:
            return None
        users = index(self.users())
        size = int(users.max(initial=-1)) + 1
        values = np.asarray(columns["values"], dtype=np.float64)
        per_user = np.stack([np.bincount(users, v, size) for v in values.T], axis=1)
        return lambda counts: self.value(counts[:size] @ per_user)


class RowMetric(Metric):
    """A function of all rows."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._rows = Rows()

    @abstractmethod
    def columns(self, view: TaskView) -> dict[str, Tensor]:
        """What to keep of each sample, [N] each."""

    @abstractmethod
    def prepare(self, columns: Mapping[str, NDArray[np.generic]]) -> Callable[[F64 | None], float]:
        """The value as a function of row weights [N] (None: all 1), sorting done once."""

    def update(self, view: TaskView, users: Tensor | None = None) -> None:
        kept = self.columns(view)
        self._rows.append(kept if users is None else {**kept, "users": users})

    def state(self) -> dict[str, Tensor]:
        return self._rows.state()

    def load(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        self._rows.load(states)

    def compute(self) -> float:
        columns = self._rows.columns()
        return self.prepare(columns)(None) if columns else float("nan")

    def users(self) -> I64:
        return np.asarray(self._rows.columns().get("users", np.zeros(0)), dtype=np.int64)

    def resampler(self, index: Callable[[I64], I64]) -> Resampler | None:
        columns = self._rows.columns()
        if "users" not in columns:
            return None
        users, value = index(self.users()), self.prepare(columns)
        return lambda counts: value(counts[users])
