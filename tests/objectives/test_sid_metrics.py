# SPDX-License-Identifier: Apache-2.0
"""Metrics of a tokenizer over the whole catalogue, against NumPy, in one rank and in two."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tzgen.data.batch import Batch
from tzgen.models.base import Outputs
from tzgen.objectives.sid_metrics import SidMetrics


def parts(seed: int = 0) -> list[Outputs]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for n in (7, 1, 12):
        codes = torch.stack([torch.randint(0, k, (n,), generator=generator) for k in (3, 5)], 1)
        x, y = (torch.randn(n, 4, generator=generator) for _ in range(2))
        found.append(Outputs({}, {"inputs": x, "decoded": y}, decoded={"codes": codes}))
    return found


def measured(all_parts: list[Outputs]) -> dict[str, float]:
    metrics = SidMetrics((3, 5))
    for part in all_parts:
        metrics.update(part, Batch(num_rows=len(part.decoded["codes"])))
    assert set(metrics.state()) == set(metrics.compute())
    return metrics.compute()


def test_values_against_numpy() -> None:
    found = measured(parts())
    codes = np.concatenate([p.decoded["codes"].numpy() for p in parts()])
    x, y = (np.concatenate([p.tensors[n].numpy() for p in parts()]) for n in ("inputs", "decoded"))
    _, counts = np.unique(codes, axis=0, return_counts=True)
    assert found["unique_sid_ratio"] == len(counts) / 20
    assert found["largest_collision"] == counts.max()
    assert found["mse"] == pytest.approx(float(((x - y) ** 2).mean()), rel=1e-5)
    assert found["rel_loss"] == pytest.approx(float(((x - y) ** 2).sum() / (x**2).sum()), rel=1e-5)
    share = np.bincount(codes[:, 1], minlength=5) / 20
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    assert found["perplexity_1"] == pytest.approx(math.exp(entropy))
    assert found["used_codes_1"] == (share > 0).mean()


def test_a_collision_across_batches_counts() -> None:
    one = Outputs({}, {}, decoded={"codes": torch.tensor([[1, 1]])})
    found = measured([one, one])
    assert found["unique_sid_ratio"] == 0.5 and math.isnan(found["mse"])


def test_two_ranks_measure_the_union() -> None:
    alone = measured(parts())
    halves = [SidMetrics((3, 5)) for _ in range(2)]
    for index, part in enumerate(parts()):
        halves[index % 2].update(part, Batch(num_rows=1))
    states = [(half._all_codes(), half._sums.clone()) for half in halves]

    def gather(value: Any) -> list[Any]:
        return states

    for half in halves:
        merged = half.compute(gather)
        assert merged.keys() == alone.keys()
        for name, value in alone.items():
            assert merged[name] == pytest.approx(value)
        with pytest.raises(ValueError, match="merged already"):
            half.update(parts()[0], Batch(num_rows=1))


def test_no_items_are_undefined() -> None:
    assert all(math.isnan(value) for value in SidMetrics((3, 5)).compute().values())
