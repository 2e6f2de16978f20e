# SPDX-License-Identifier: Apache-2.0
"""MovieLens ratings to user sequences and a catalogue with titles and genres, leave-last-out.

    python tools/prepare_movielens_sequences.py                                   # 100K, fetched
    python tools/prepare_movielens_sequences.py --input FOLDER --output data/ml100k-sequences

Input as in tools/prepare_movielens.py, where 100K comes from too. Rows and splits:
tools/sequence_rows.py; every rating is an event, whatever its value. Ratings of one second keep the
order of the file in 100K (there is no other), and the rank of the re-joined 1M. `text` is "title.
genres", what encoders read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from movielens_files import Tables, fetch_100k, read_tables
from prepared import (
    Progress,
    arguments_of,
    checksums,
    is_current,
    new_folder,
    run,
    write_manifest,
)
from sequence_rows import (
    SPLITS,
    check_items,
    items_table,
    ordered_events,
    with_train_counts,
    write_sequences,
)


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--input", type=Path, help="folder of the data set; default: fetch 100K")
    flags.add_argument("--output", type=Path, default=Path("data/ml100k-sequences"))
    flags.add_argument("--cache", type=Path, default=Path("data/cache"), help="for the download")
    flags.add_argument("--row_group_rows", type=int, default=500)
    flags.add_argument("--overwrite", action="store_true", help="replace rows in --output")
    return flags


def build_events(tables: Tables) -> pl.DataFrame:
    """user_id, item_id, timestamp, order; by user and order."""
    events = tables.ratings.select("user_id", "order", "timestamp", item_id="movie_id")
    return ordered_events(events, tables.files[0])


def build_items(tables: Tables) -> pl.DataFrame:
    """item_id, title, attributes (the genres), text; only movies that somebody rated."""
    rated = tables.movies.join(tables.ratings, on="movie_id", how="semi", maintain_order="left")
    genres = pl.col("genres").list.eval(pl.element().filter(pl.element() != "unknown"))
    items = rated.select("title", item_id="movie_id", attributes=genres)
    text = pl.concat_str("title", pl.col("attributes").list.join(", "), separator=". ")
    return items.select("item_id", "title", "attributes", text=text.str.strip_chars(" ."))


def main(argv: Sequence[str] | None) -> None:
    args = parser().parse_args(argv)
    progress = Progress()
    if args.input is None:
        progress.say(f"fetching MovieLens-100K into {args.cache}")
    tables = read_tables(args.input if args.input is not None else fetch_100k(args.cache))
    inputs = checksums(tables.files)
    done = is_current(args.output, "prepare_movielens_sequences", inputs, arguments_of(args))
    if done and not args.overwrite:
        progress.say(f"{args.output} already holds these rows")
        return
    with new_folder(args.output, overwrite=args.overwrite) as folder:
        events, items = build_events(tables), build_items(tables)
        check_items(events, items, tables.files[1])
        progress.say(f"read {events.height:,} ratings of {items.height:,} movies ({tables.note})")
        table = items_table(with_train_counts(items, events), {})
        splits = write_sequences(folder, events, table, row_group_rows=args.row_group_rows)
        for split in SPLITS:
            progress.say(f"{split}: {splits[split]['rows']:,} rows")
        write_manifest(
            folder,
            {
                "tool": "prepare_movielens_sequences",
                "input": inputs,
                "arguments": arguments_of(args),
                "protocol": "leave-last-out, whole histories",
                "note": tables.note,
                "splits": splits,
                "item": "item_id",
                "vectors": [],
            },
        )
    progress.say(f"wrote {args.output}")


if __name__ == "__main__":
    run(main)
