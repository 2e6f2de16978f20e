# SPDX-License-Identifier: Apache-2.0
"""Popularity and ItemKNN against loops over pairs; the figures of the real set where it lies."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import prepare_amazon
import pytest
import sequence_baselines
from test_prepare_amazon import BEAUTY, write_source

from tzgen.errors import UserError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    output = tmp_path / "rows"
    prepare_amazon.main(["--input", str(write_source(tmp_path / "raw")), "--output", str(output)])
    return output


def plain_ranks(data: Path, split: str, method: str) -> list[int]:
    """The module docstring, in loops."""

    def sequences(name: str) -> list[tuple[list[int], int]]:
        frame = pl.read_parquet(data / name / "*.parquet")
        return list(zip(frame["uih__item_id"].to_list(), frame["target_item_id"], strict=True))

    train = [[*history, target] for history, target in sequences("train")]
    counts = Counter(item for seq in train for item in seq)
    near: dict[tuple[int, int], float] = defaultdict(float)
    for seq in train:
        for i, a in enumerate(seq):
            for d in (1, 2, 3):
                if i + d < len(seq):
                    b = seq[i + d]
                    near[a, b] += 1 / d
                    near[b, a] += 0.5 / d
    items = sorted(pl.read_parquet(data / "items" / "*.parquet")["item_id"].to_list())
    ranks = []
    for history, target in sequences(split):

        def score(item: int, history: list[int] = history) -> tuple[float, float]:
            total = 0.0
            if method == "itemknn":
                for age, seen in enumerate(reversed(history[-5:])):
                    scale = (max(counts[seen], 1) * max(counts[item], 1)) ** 0.5
                    total += near[seen, item] / scale / (1 + age)
            return round(total, 12), counts[item]

        order = sorted(
            (i for i in items if i not in history), key=lambda i: (*(-s for s in score(i)), i)
        )
        ranks.append(order.index(target) + 1 if target in order else len(items) + 1)
    return ranks


@pytest.mark.parametrize("method", ["popularity", "itemknn"])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_ranks_are_those_of_the_loops(data: Path, split: str, method: str) -> None:
    ranks = sequence_baselines.target_ranks(sequence_baselines.Sequences(data, split), method)
    assert ranks.tolist() == plain_ranks(data, split, method)


def test_metrics_by_hand() -> None:
    found = sequence_baselines.gains(np.array([1, 3, 6, 21]))
    assert found["recall@5"].tolist() == [1, 1, 0, 0]
    assert found["ndcg@10"] == pytest.approx([1, 0.5, 1 / np.log2(7), 0])
    assert found["recall@20"].mean() == 0.75
    report = sequence_baselines.summary(
        np.array([1, 3, 6, 21]), np.array([9, 2, 5, 7]), samples=20, seed=0
    )
    assert report["rare"] == {"targets": 2, "recall@10": 1.0}
    low, high = report["recall@5"]["interval"]
    assert low <= 0.5 <= high


def test_the_report_is_written_and_a_wrong_folder_named(data: Path, tmp_path: Path) -> None:
    report = tmp_path / "out" / "report.json"
    sequence_baselines.main(["--data", str(data), "--report", str(report), "--samples", "5"])
    assert set(json.loads(report.read_text())["methods"]) == {"popularity", "itemknn"}
    with pytest.raises(UserError, match="no folder valid"):
        sequence_baselines.main(["--data", str(tmp_path / "out")])


def test_figures_of_the_real_set(tmp_path: Path) -> None:
    """Measured once by another implementation of the same definition."""
    if not BEAUTY.is_dir():
        pytest.skip("shared/data/amazon-beauty-2014 is absent")
    rows = tmp_path / "beauty"
    prepare_amazon.main(["--input", str(BEAUTY), "--output", str(rows)])
    data = sequence_baselines.Sequences(rows, "test")
    for method, expected in (
        ("popularity", (0.0075, 0.0041, 0.0115, 0.0055)),
        ("itemknn", (0.0554, 0.0415, 0.0751, 0.0479)),
    ):
        found = sequence_baselines.gains(sequence_baselines.target_ranks(data, method))
        names = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
        assert [round(found[name].mean(), 4) for name in names] == list(expected)
