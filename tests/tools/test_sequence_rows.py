# SPDX-License-Identifier: Apache-2.0
"""Leave-last-out rows against plain Python; broken catalogues."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import sequence_rows

from tzgen.errors import DataError


def events(seed: int = 0, *, users: int = 7, items: int = 9) -> pl.DataFrame:
    """Shuffled events; user u has u + 3 of them, the first three items never come last."""
    rng = np.random.default_rng(seed)
    rows = [
        {"user_id": u, "item_id": int(rng.integers(1, items + 1)), "timestamp": 100 * p, "order": p}
        for u in range(users)
        for p in range(u + 3)
    ]
    return pl.DataFrame(rows).sample(fraction=1.0, shuffle=True, seed=seed)


def by_user(frame: pl.DataFrame) -> dict[int, list[tuple[int, int]]]:
    found: dict[int, list[tuple[int, int]]] = {}
    for row in sorted(frame.iter_rows(named=True), key=lambda r: (r["user_id"], r["order"])):
        found.setdefault(row["user_id"], []).append((row["item_id"], row["timestamp"]))
    return found


@pytest.mark.parametrize(("split", "drop"), [("train", 2), ("valid", 1), ("test", 0)])
def test_rows_end_where_the_split_says(split: str, drop: int) -> None:
    frame = events()
    ordered = sequence_rows.ordered_events(frame, Path("x.tsv"))
    rows = sequence_rows.cut_rows(ordered, split).to_pylist()
    expected = {user: seq[: len(seq) - drop] for user, seq in by_user(frame).items()}
    assert [row["user_id"] for row in rows] == sorted(expected)
    for row in rows:
        seq = expected[row["user_id"]]
        assert row["uih__item_id"] == [item for item, _ in seq[:-1]]
        assert row["uih__timestamp"] == [time for _, time in seq[:-1]]
        assert (row["target_item_id"], row["target_timestamp"]) == seq[-1]
        assert row["target__item_id"] == [seq[-1][0]]


def test_train_counts_leave_the_held_out_items_out() -> None:
    frame = sequence_rows.ordered_events(events(), Path("x.tsv"))
    items = pl.DataFrame({"item_id": range(1, 12)})
    counted = sequence_rows.with_train_counts(items, frame)
    expected = [0] * 11
    for seq in by_user(frame).values():
        for item, _ in seq[:-2]:
            expected[item - 1] += 1
    assert counted["train_count"].to_list() == expected
    assert counted["item_id"].to_list() == list(range(1, 12))


def test_a_user_too_short_is_named() -> None:
    frame = pl.concat([events(), pl.DataFrame(
        {"user_id": [99, 99], "item_id": [1, 2], "timestamp": [1, 2], "order": [0, 1]}
    )])  # fmt: skip
    with pytest.raises(DataError, match=r"user 99 with 2"):
        sequence_rows.ordered_events(frame, Path("x.tsv"))


def test_items_without_a_row_and_items_with_two_are_named() -> None:
    frame = events()
    items = pl.DataFrame({"item_id": range(1, 10)})
    sequence_rows.check_items(frame, items, Path("items.tsv"))
    with pytest.raises(DataError, match=r"no row for 1 items, e\.g\. 4"):
        sequence_rows.check_items(frame, items.filter(pl.col("item_id") != 4), Path("items.tsv"))
    with pytest.raises(DataError, match="item 1 again"):
        sequence_rows.check_items(frame, pl.concat([items, items.head(1)]), Path("items.tsv"))


def test_vectors_become_a_list_column() -> None:
    items = pl.DataFrame({"item_id": [3, 1], "train_count": [0, 2]})
    vectors = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float16)
    table = sequence_rows.items_table(items, {"item_emb": vectors})
    assert table["item_emb"].to_pylist() == [[1.0, 2.0], [3.0, 4.0]]
