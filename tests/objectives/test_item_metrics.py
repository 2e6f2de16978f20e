# SPDX-License-Identifier: Apache-2.0
"""Metrics on items against plain Python, in one rank and in two; intervals; nothing measured."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tzgen.data.batch import Batch
from tzgen.errors import UserError
from tzgen.models.base import Outputs
from tzgen.objectives.item_metrics import ItemMetrics

ITEMS, LIST = 40, 20
EXTRA = ("cold_recall@10", "invalid_rate")


def parts(seed: int = 0) -> list[tuple[Outputs, Batch]]:
    """Batches of 7, 1 and 30 rows: short lists, unknown targets, rows without one."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for n in (7, 1, 30):
        ranked = torch.stack([torch.randperm(ITEMS, generator=generator)[:LIST] for _ in range(n)])
        ranked[n // 2, 12:] = -1
        target = torch.randint(-2, ITEMS, (n,), generator=generator)
        hit = torch.rand(n, generator=generator) < 0.6
        place = torch.randint(0, 12, (n,), generator=generator)
        target = torch.where(hit & (target >= 0), ranked[torch.arange(n), place], target)
        tensors = {
            "ranked": ranked,
            "target": target,
            "history": torch.randint(0, 9, (n,), generator=generator),
            "unknown": torch.randint(0, 3, (n,), generator=generator),
            "is_cold": (target % 3 == 0) & (target >= 0),
            "invalid": torch.rand(n, generator=generator),
        }
        users = torch.randint(0, 6, (n,), generator=generator)
        found.append((Outputs({}, tensors), Batch(num_rows=n, raw_ids={"user": users})))
    return found


def plain(all_parts: list[tuple[Outputs, Batch]]) -> dict[str, float]:
    rows = []
    for out, _ in all_parts:
        columns = {name: value.tolist() for name, value in out.tensors.items()}
        rows += [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
    asked = [row for row in rows if row["target"] > -2]
    found: dict[str, float] = {}
    for cut in (5, 10, 20):
        hits = [r["target"] >= 0 and r["target"] in r["ranked"][:cut] for r in asked]
        gains = [
            1 / math.log2(r["ranked"].index(r["target"]) + 2) if hit else 0
            for r, hit in zip(asked, hits, strict=True)
        ]
        found[f"recall@{cut}"] = found[f"hit_rate@{cut}"] = sum(hits) / len(asked)
        found[f"ndcg@{cut}"] = sum(gains) / len(asked)
    cold = [r for r in asked if r["is_cold"]]
    found["cold_recall@10"] = sum(r["target"] in r["ranked"][:10] for r in cold) / len(cold)
    listed = {item for r in rows for item in r["ranked"][:10] if item >= 0}
    found["coverage@10"] = len(listed) / ITEMS
    found["invalid_rate"] = sum(r["invalid"] for r in rows) / len(rows)
    found["unknown_target"] = sum(r["target"] == -1 for r in asked) / len(asked)
    kept, dropped = sum(r["history"] for r in rows), sum(r["unknown"] for r in rows)
    found["unknown_history"] = dropped / (kept + dropped)
    return found


def metrics(**given: Any) -> ItemMetrics:
    return ItemMetrics(ITEMS, list_size=LIST, **{"extra": EXTRA, **given})


def test_values_against_plain_python() -> None:
    measured = metrics()
    for out, batch in parts():
        measured.update(out, batch)
    found = measured.compute()
    assert found == pytest.approx(plain(parts()), rel=1e-6)
    assert set(measured.state()) == set(found) and 0 < found["recall@5"] < found["recall@10"] < 1


@pytest.mark.parametrize("key", ["user", ""])
def test_two_ranks_measure_the_union(key: str) -> None:
    whole = metrics(confidence_key=key, bootstrap_samples=40)
    halves = [metrics(confidence_key=key, bootstrap_samples=40) for _ in range(2)]
    for index, (out, batch) in enumerate(parts()):
        whole.update(out, batch)
        halves[index // 2].update(out, batch)
    states: list[Any] = []
    for half in halves:
        half._merge(lambda value: states.append(value) or [value])
        half._merged = False
    for half in halves:
        assert half.compute(lambda _: states) == pytest.approx(whole.compute())
        assert half.intervals(lambda _: states) == whole.intervals()
        with pytest.raises(ValueError, match="merged already"):
            half.update(*parts()[0])


def test_intervals_hold_the_value_and_resample_users() -> None:
    by_user, by_row = (
        metrics(confidence_key=key, bootstrap_samples=300, seed=1) for key in ("user", "")
    )
    for measured in (by_user, by_row):
        for out, batch in parts():
            measured.update(out, batch)
    value = by_user.compute()["recall@10"]
    (low, high), (row_low, row_high) = (m.intervals()["recall@10"] for m in (by_user, by_row))
    assert low < value < high and row_low < value < row_high
    assert (low, high) != (row_low, row_high)
    assert metrics().intervals() == {}


def test_a_key_that_is_no_column_is_named() -> None:
    measured = metrics(confidence_key="person", bootstrap_samples=5)
    with pytest.raises(UserError, match=r"'person'.*\['user'\]"):
        measured.update(*parts()[0])


def test_nothing_measured_is_undefined_and_short_lists_have_short_cuts() -> None:
    measured = ItemMetrics(ITEMS, list_size=10)
    found = measured.compute()
    assert math.isnan(found["recall@10"]) and "recall@20" not in found
    assert "invalid_rate" not in found and found["coverage@10"] == 0
