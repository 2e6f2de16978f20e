# SPDX-License-Identifier: Apache-2.0
"""Rows for retrieval and generation: one user sequence each, the last items held out.

    items   one row an item: `item_id`, `title`, `text`, `train_count`, and what else the tool knows
    train   one row a user: the sequence less its last two items
    valid   one row a user: the last item but one after all that came before it
    test    one row a user: the last item after all that came before it

Columns of a split: `user_id`, `uih__item_id`, `uih__timestamp` (lists, oldest first),
`target_item_id`, `target_timestamp`, and `target__item_id`, the same as a list of one, which is
what generators read. Histories are whole: a config's `sequence_length` cuts them. Training on every
prefix of `train` is the loader's work (data_config.sliding_window).

Leave-last-out is the protocol of the published tables (S3-Rec, TIGER). It is not free of looking
ahead: another user's training item may be younger than a test item. Use a split by time for what a
service would see.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from prepared import Manifest, write_split

from tzgen.errors import DataError

SPLITS = ("train", "valid", "test")
HELD_OUT = 2


def ordered_events(
    events: pl.DataFrame, path: Path, *, min_events: int = 3, way_out: str = ""
) -> pl.DataFrame:
    """user_id, item_id, timestamp, order -> the same, by user and order; users that are too short
    to hold two items out of are refused by name. `way_out`: what else the calling tool offers.
    """
    events = events.sort("user_id", "order", maintain_order=True)
    counts = events.group_by("user_id", maintain_order=True).len()
    short = counts.filter(pl.col("len") < min_events)
    if short.height:
        raise DataError(
            file=str(path),
            column="user_id",
            found=f"{short.height} users with fewer than {min_events} events, e.g. user "
            f"{short['user_id'][0]} with {short['len'][0]}",
            expected=f"at least {min_events}: one to learn from, one to validate, one to test",
            remedy=f"Filter the data to its k-core first{way_out}.",
        )
    return events


def cut_rows(events: pl.DataFrame, split: str) -> pa.Table:
    """The rows of one split from `ordered_events`."""
    drop = {"train": HELD_OUT, "valid": 1, "test": 0}[split]
    users = events.group_by("user_id", maintain_order=True).agg("item_id", "timestamp")
    kept = pl.col("item_id", "timestamp").list
    users = users.with_columns(kept.head(pl.col("item_id").list.len() - drop))
    last = pl.col("item_id", "timestamp").list.last().name.prefix("target_")
    before = kept.head(pl.col("item_id").list.len() - 1).name.prefix("uih__")
    rows = users.select("user_id", before, last)
    table = rows.to_arrow()
    lists = {"uih__item_id": pa.int64(), "uih__timestamp": pa.int64()}
    for name, kind in lists.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, table[name].cast(pa.list_(kind)))
    last_one = table["target_item_id"].cast(pa.int64()).combine_chunks()
    offsets = pa.array(range(len(last_one) + 1), pa.int32())
    return table.append_column("target__item_id", pa.ListArray.from_arrays(offsets, last_one))


def with_train_counts(items: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """`items` with `train_count`: how often each stands in the training part. 0 is a cold item."""
    place = pl.int_range(pl.len()).over("user_id")
    train = events.filter(place < pl.len().over("user_id") - HELD_OUT)
    counts = train.group_by("item_id").len("train_count")
    joined = items.join(counts, on="item_id", how="left", maintain_order="left")
    return joined.with_columns(pl.col("train_count").fill_null(0).cast(pl.Int64))


def check_items(events: pl.DataFrame, items: pl.DataFrame, path: Path) -> None:
    """Every event's item has a row, and no item has two."""
    twice = items["item_id"].is_duplicated()
    if twice.any():
        row = int(twice.arg_max() or 0)
        raise DataError(
            file=str(path),
            row=row,
            column="item_id",
            found=f"item {items['item_id'][row]} again",
            expected="one row an item",
            remedy="Remove the repeated rows.",
        )
    missing = events.join(items, on="item_id", how="anti")["item_id"]
    if missing.len():
        raise DataError(
            file=str(path),
            column="item_id",
            found=f"no row for {missing.n_unique()} items, e.g. {missing[0]}",
            expected="every item of the interactions",
            remedy="Use files of one data set.",
        )


def items_table(items: pl.DataFrame, vectors: Mapping[str, np.ndarray[Any, Any]]) -> pa.Table:
    """The catalogue, each array [items, width] as a column of float32 lists beside it."""
    table = items.to_arrow()
    for name, values in vectors.items():
        flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
        offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
        table = table.append_column(name, pa.ListArray.from_arrays(pa.array(offsets), flat))
    return table


def write_sequences(
    folder: Path, events: pl.DataFrame, items: pa.Table, *, row_group_rows: int
) -> Manifest:
    """The four folders; returns their counts for the manifest."""
    write_split(folder, "items", items, row_group_rows=row_group_rows)
    counts = items["train_count"].to_numpy()
    found: Manifest = {"items": {"rows": items.num_rows, "cold": int((counts == 0).sum())}}
    for split in SPLITS:
        rows = cut_rows(events, split)
        write_split(folder, split, rows, row_group_rows=row_group_rows)
        lengths = np.diff(rows["uih__item_id"].combine_chunks().offsets.to_numpy())
        found[split] = {
            "rows": rows.num_rows,
            "mean_history": round(float(lengths.mean()), 2),
            "longest_history": int(lengths.max()),
        }
    return found
