# SPDX-License-Identifier: Apache-2.0
"""What evaluation says of a tokenizer, over the whole evaluated catalogue and all ranks.

    mse, rel_loss                mean square of x - x_hat; the same over the mean square of x
    unique_sid_ratio             distinct IDs over items, before collisions are resolved
    largest_collision            items of the most crowded ID
    used_codes_<s>               share of level s's codes that some item has
    perplexity_<s>               exp of the entropy of level s's codes: how many are used in effect

Names of the first lines are TorchEasyRec's; its unique_sid_ratio is of batches, ours of all items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tzgen.data.batch import Batch
from tzgen.models.base import Outputs
from tzgen.objectives.metrics import AllGather


class SidMetrics:
    """Evaluation metrics of a model with `codebook` sizes; used like TaskMetrics.

    The model leaves decoded["codes"] int64 [N, S] and, for the errors, tensors["inputs"],
    tensors["decoded"] [N, D].
    """

    def __init__(self, codebook: Sequence[int]) -> None:
        self.codebook = tuple(codebook)
        self._codes: list[Tensor] = []
        self._sums = torch.zeros(3, dtype=torch.float64)  # squared error, squared input, numbers
        self._merged = False

    def update(self, outputs: Outputs, batch: Batch) -> None:
        """Add a batch of this rank."""
        if self._merged:
            raise ValueError("SidMetrics are merged already: make new ones for another evaluation")
        self._codes.append(outputs.decoded["codes"].detach().cpu())
        if "decoded" in outputs.tensors:
            x, x_hat = outputs.tensors["inputs"].double(), outputs.tensors["decoded"].double()
            sums = torch.stack([(x - x_hat).square().sum(), x.square().sum()]).cpu()
            self._sums[:2] += sums
            self._sums[2] += x.numel()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """{metric: ...} by name; only the names are read (which metrics there are)."""
        return {name: {} for name in self._names()}

    def compute(self, all_gather: AllGather | None = None) -> dict[str, float]:
        """Metric -> value, of all ranks' items; NaN without items."""
        if all_gather is not None and not self._merged:
            parts = all_gather((self._all_codes(), self._sums))
            self._codes = [codes for codes, _ in parts]
            self._sums = torch.stack([sums for _, sums in parts]).sum(0)
            self._merged = True
        codes = self._all_codes()
        error, square, numbers = self._sums.tolist()
        values = {
            "mse": error / numbers if numbers else math.nan,
            "rel_loss": error / square if square else math.nan,
        }
        if not codes.size(0):
            return {name: values.get(name, math.nan) for name in self._names()}
        _, counts = torch.unique(codes, dim=0, return_counts=True)
        values["unique_sid_ratio"] = counts.numel() / codes.size(0)
        values["largest_collision"] = float(counts.max())
        for level, size in enumerate(self.codebook):
            uses = torch.bincount(codes[:, level], minlength=size).double()
            share = uses[uses > 0] / uses.sum()
            values[f"used_codes_{level}"] = float((uses > 0).double().mean())
            values[f"perplexity_{level}"] = float((-(share * share.log()).sum()).exp())
        return values

    def intervals(self, all_gather: AllGather | None = None) -> dict[str, tuple[float, float]]:
        """None: a catalogue is no sample of users."""
        return {}

    def _all_codes(self) -> Tensor:
        if not self._codes:
            return torch.zeros(0, len(self.codebook), dtype=torch.int64)
        return torch.cat(self._codes)

    def _names(self) -> list[str]:
        levels = range(len(self.codebook))
        names = ["mse", "rel_loss", "unique_sid_ratio", "largest_collision"]
        return [*names, *(f"{n}_{s}" for s in levels for n in ("used_codes", "perplexity"))]
