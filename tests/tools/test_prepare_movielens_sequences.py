# SPDX-License-Identifier: Apache-2.0
"""MovieLens sequences in every layout."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import prepare_movielens_sequences
import pytest
from test_prepare_movielens import ratings, recbole_files, write_1m, write_100k

from tzgen.errors import DataError


def rows_of(source: Path, output: Path, split: str) -> pl.DataFrame:
    prepare_movielens_sequences.main(["--input", str(source), "--output", str(output)])
    return pl.read_parquet(output / split / "*.parquet")


@pytest.mark.parametrize("layout", ["100k", "recbole", "1m"])
def test_the_last_rating_is_the_target(tmp_path: Path, layout: str) -> None:
    rows, source = ratings(), tmp_path / "raw"
    if layout == "100k":
        write_100k(source, rows)
    elif layout == "1m":
        write_1m(source, rows, ordered=False)
    else:
        source.mkdir()
        for name, text in recbole_files(rows).items():
            (source / name).write_text(text)
    test = rows_of(source, tmp_path / "rows", "test")
    for row in test.iter_rows(named=True):
        mine = sorted((r for r in rows if r[0] == row["user_id"]), key=lambda r: r[3])
        assert [*row["uih__item_id"], row["target_item_id"]] == [r[1] for r in mine]
    items = pl.read_parquet(tmp_path / "rows" / "items" / "*.parquet")
    assert items["item_id"].to_list() == sorted({r[1] for r in rows})
    assert items["title"].str.contains("(?i)am.lie|unknown").all()
    assert items.filter(pl.col("item_id") == 1)["text"].item().endswith(". Comedy, Drama")


def test_ranks_order_the_rejoined_set(tmp_path: Path) -> None:
    rows = ratings()
    source = write_1m(tmp_path / "raw", rows, ordered=True)
    train = rows_of(source, tmp_path / "rows", "train")
    for row in train.iter_rows(named=True):
        mine = [
            r[1] for r in sorted((r for r in rows if r[0] == row["user_id"]), key=lambda r: r[3])
        ]
        ranked = [item for rank, item in enumerate(mine, start=1) if rank != 4]
        assert [*row["uih__item_id"], row["target_item_id"]] == ranked[:-2]


def test_a_user_too_short_is_named_without_flags_of_other_tools(tmp_path: Path) -> None:
    others = [row for row in ratings() if row[0] != 8]
    mine = [row for row in ratings() if row[0] == 8]
    source = write_100k(tmp_path / "raw", [*others, *mine[:2]])
    with pytest.raises(DataError, match=r"user 8 with 2.*k-core first\.") as found:
        rows_of(source, tmp_path / "rows", "train")
    assert "--" not in str(found.value)
