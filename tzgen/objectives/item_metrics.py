# SPDX-License-Identifier: Apache-2.0
"""What evaluation says of a generator: whether the items that it lists hold the one that came.

Every row with a target counts, on items, not on codes; a target that the bundle lacks is a miss.

    recall@k, hit_rate@k       share of rows whose target is among the first k: one target a row, so
                               that both are one number (k = 5, 10, 20)
    ndcg@k                     1 / log2(rank + 1) of the target, 0 beyond k
    coverage@10                share of the catalogue that is among the first 10 of some row
    cold_recall@10             recall@10 of rows whose target is cold (with cold_items)
    invalid_rate               share of unconstrained results that are no item (measure_invalid)
    unknown_target             share of rows whose target is in no bundle
    unknown_history            share of history items in no bundle, which were dropped

Intervals resample users: eval_config.confidence_key where it is set, else every row is a user.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tzgen.data.batch import Batch
from tzgen.errors import UserError
from tzgen.models.base import Outputs
from tzgen.objectives.confidence import bounds, resamples
from tzgen.objectives.metrics import AllGather

CUTS = (5, 10, 20)
UNKNOWN = -1  # a target that the bundle lacks; below it: the row has none
MISSED = 1 << 30
READ = ("ranked", "target", "history", "unknown", "is_cold", "invalid")


class ItemMetrics:
    """Evaluation metrics of a model that `measures` items; used like TaskMetrics.

    Of a batch are read tensors ranked int64 [B, R], target int64 [B], history and unknown int64
    [B], and where they are there is_cold bool [B] and invalid float [B].
    """

    def __init__(
        self,
        num_items: int,
        *,
        list_size: int,
        extra: Sequence[str] = (),
        confidence_key: str = "",
        bootstrap_samples: int = 0,
        seed: int = 0,
    ) -> None:
        """list_size: R; cuts beyond it are left out. extra: "cold_recall@10", "invalid_rate"."""
        self.num_items, self.extra = num_items, tuple(extra)
        self.cuts = tuple(cut for cut in CUTS if cut <= list_size)
        self.confidence_key, self.samples, self.seed = confidence_key, bootstrap_samples, seed
        self._ranks: list[Tensor] = []  # int64 [rows], MISSED where the target is not listed
        self._cold: list[Tensor] = []
        self._users: list[Tensor] = []
        self._rows = 0
        self._listed = torch.zeros(num_items, dtype=torch.bool)
        # rows with an unknown target; history items kept, dropped; sum of invalid, rows it is of
        self._sums = torch.zeros(5, dtype=torch.float64)
        self._merged = False

    def update(self, outputs: Outputs, batch: Batch) -> None:
        """Add a batch of this rank."""
        if self._merged:
            raise ValueError("ItemMetrics are merged already: make new ones for another evaluation")
        read = {name: outputs.tensors.get(name) for name in READ}
        tensors = {name: value.detach().cpu() for name, value in read.items() if value is not None}
        ranked, target = tensors["ranked"], tensors["target"]
        asked = target >= UNKNOWN
        self._ranks.append(rank_of(ranked, target)[asked])
        if "is_cold" in tensors:
            self._cold.append(tensors["is_cold"][asked])
        if self.samples:
            self._users.append(self._users_of(batch)[asked])
        self._rows += batch.num_rows
        first = ranked[:, :10]
        self._listed[first[first >= 0]] = True
        invalid = tensors.get("invalid", torch.zeros(0))
        self._sums += torch.tensor(
            [
                float((target == UNKNOWN).sum()),
                float(tensors["history"].sum()),
                float(tensors["unknown"].sum()),
                float(invalid.sum()),
                float(invalid.numel()),
            ],
            dtype=torch.float64,
        )

    def _users_of(self, batch: Batch) -> Tensor:
        if not self.confidence_key:
            return torch.arange(self._rows, self._rows + batch.num_rows)
        if self.confidence_key not in batch.raw_ids:
            raise UserError(
                f"eval_config.confidence_key is {self.confidence_key!r}: this batch has no such "
                f"column; it has {sorted(batch.raw_ids) or 'none'}"
            )
        return batch.raw_ids[self.confidence_key].cpu()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """{metric: ...} by name; only the names are read (which metrics there are)."""
        cuts = [f"{name}@{k}" for name in ("recall", "ndcg", "hit_rate") for k in self.cuts]
        names = [*cuts, "coverage@10", *self.extra, "unknown_target", "unknown_history"]
        return {name: {} for name in names}

    def compute(self, all_gather: AllGather | None = None) -> dict[str, float]:
        """Metric -> value over all ranks' rows; NaN without rows that have a target."""
        self._merge(all_gather)
        ranks, cold = _joined(self._ranks).numpy(), _joined(self._cold, torch.bool).numpy()
        values = self._of_ranks(ranks, np.ones(len(ranks)))
        values["coverage@10"] = float(self._listed.double().mean())
        hits = ranks[cold] <= 10 if len(cold) else np.zeros(0)
        values["cold_recall@10"] = float(hits.mean()) if hits.size else math.nan
        unknown, kept, dropped, invalid, searched = self._sums.tolist()
        values["invalid_rate"] = _ratio(invalid, searched)
        values["unknown_target"] = _ratio(unknown, len(ranks))
        values["unknown_history"] = _ratio(dropped, kept + dropped)
        return {name: values[name] for name in self.state()}

    def intervals(self, all_gather: AllGather | None = None) -> dict[str, tuple[float, float]]:
        """Metric -> 95 % interval over resampled users; {} without bootstrap_samples or rows."""
        self._merge(all_gather)
        ranks = _joined(self._ranks).numpy()
        if not self.samples or not len(ranks):
            return {}
        distinct, user = np.unique(_joined(self._users).numpy(), return_inverse=True)
        drawn: dict[str, list[float]] = {}
        for counts in resamples(len(distinct), self.samples, self.seed):
            for name, value in self._of_ranks(ranks, counts[user]).items():
                drawn.setdefault(name, []).append(value)
        return {name: bounds(np.array(values)) for name, values in drawn.items()}

    def _of_ranks(self, ranks: np.ndarray, weights: np.ndarray) -> dict[str, float]:
        """Metrics of the target's rank, every row with a weight."""
        total, found = float(weights.sum()), {}
        gains = 1.0 / np.log2(ranks + 1.0)
        for cut in self.cuts:
            hit = weights * (ranks <= cut)
            found[f"recall@{cut}"] = found[f"hit_rate@{cut}"] = _ratio(float(hit.sum()), total)
            found[f"ndcg@{cut}"] = _ratio(float((hit * gains).sum()), total)
        return found

    def _merge(self, all_gather: AllGather | None) -> None:
        if all_gather is None or self._merged:
            return
        mine = (_joined(self._ranks), _joined(self._cold, torch.bool), self._users, self._listed)
        parts = all_gather((*mine, self._sums))
        self._merged = True
        self._ranks = [part[0] for part in parts]
        self._cold = [part[1] for part in parts]
        before, users = 0, []
        for part in parts:
            ids = _joined(part[2])
            users.append(ids if self.confidence_key else ids + before)
            before += int(ids.max()) + 1 if ids.numel() else 0
        self._users = users
        self._listed = torch.stack([part[3] for part in parts]).any(0)
        self._sums = torch.stack([part[4] for part in parts]).sum(0)


def rank_of(ranked: Tensor, target: Tensor) -> Tensor:
    """Place of each row's target in its list, 1 is first, int64 [B]; MISSED where it is not there.

    >>> rank_of(torch.tensor([[4, 7, -1], [4, 7, 9]]), torch.tensor([-1, 7])).tolist()
    [1073741824, 2]
    """
    hit = (ranked == target[:, None]) & (ranked >= 0)
    if not ranked.size(1):
        return torch.full_like(target, MISSED)
    return torch.where(hit.any(1), hit.to(torch.uint8).argmax(1) + 1, MISSED)


def _joined(parts: Sequence[Tensor], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.zeros(0, dtype=dtype)


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan
