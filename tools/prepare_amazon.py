# SPDX-License-Identifier: Apache-2.0
"""Amazon reviews (5-core) to user sequences and a catalogue, leave-last-out.

    python tools/prepare_amazon.py --input FOLDER --output data/beauty

FOLDER holds interactions.tsv (user_id, item_id, pos, unix_ts) and items.tsv (item_id, title,
attributes joined by |), each also as .gz; any *_emb_*.npy or *_emb.npy of as many rows as the
largest item_id, row k for item k + 1, becomes the column `item_emb`. The same tool prepares any set
of that layout, so that a second one can serve as a hold-out. Reviews are McAuley's Amazon data, for
research: never redistribute the rows.

Rows and splits: tools/sequence_rows.py. `text` is "title. attributes", what encoders read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from prepared import (
    Progress,
    arguments_of,
    checksums,
    find_input,
    is_current,
    need_columns,
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

from tzgen.errors import DataError, UserError

VECTORS = "item_emb"


@dataclass(frozen=True)
class Source:
    interactions: Path
    items: Path
    vectors: Path | None

    @property
    def files(self) -> list[Path]:
        return [p for p in (self.interactions, self.items, self.vectors) if p is not None]


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--input", type=Path, required=True, help="folder of the data set")
    flags.add_argument("--output", type=Path, default=Path("data/beauty"))
    flags.add_argument(
        "--min_events", type=int, default=3, help="0: leave shorter users out in silence"
    )
    flags.add_argument("--row_group_rows", type=int, default=2000)
    flags.add_argument("--overwrite", action="store_true", help="replace rows in --output")
    return flags


def find_source(folder: Path) -> Source:
    """The files of the data set; at most one array of item vectors."""
    if not folder.is_dir():
        raise UserError(f"--input {folder} is not a folder; expected Amazon review files")
    vectors = sorted({*folder.glob("*_emb_*.npy"), *folder.glob("*_emb.npy")})
    if len(vectors) > 1:
        raise UserError(
            f"--input {folder} has {len(vectors)} arrays of item vectors "
            f"({', '.join(path.name for path in vectors)}); expected one. Move the others away."
        )
    return Source(
        find_input(folder, ["interactions.tsv"], "user_id, item_id, pos, unix_ts by tabs"),
        find_input(folder, ["items.tsv"], "item_id, title, attributes by tabs"),
        vectors[0] if vectors else None,
    )


def read_events(path: Path, min_events: int) -> pl.DataFrame:
    """user_id, item_id, timestamp, order: int64, by user and order."""
    frame = _read(path, ("user_id", "item_id", "pos", "unix_ts"))
    events = frame.select(
        pl.col("user_id", "item_id").cast(pl.Int64),
        pl.col("unix_ts").cast(pl.Int64).alias("timestamp"),
        pl.col("pos").cast(pl.Int64).alias("order"),
    )
    if min_events == 0:
        events = events.filter(pl.len().over("user_id") >= 3)
    way_out = ", or pass --min_events 0 to leave them out"
    return ordered_events(events, path, min_events=max(min_events, 3), way_out=way_out)


def read_items(path: Path) -> pl.DataFrame:
    """item_id, title, attributes (list of text), text; in file order."""
    frame = _read(path, ("item_id", "title", "attributes"))
    words = pl.col("attributes").fill_null("").str.split("|")
    attributes = words.list.eval(pl.element().filter(~pl.element().is_in(["", "Unknown"])))
    frame = frame.select(
        pl.col("item_id").cast(pl.Int64), pl.col("title").fill_null(""), attributes=attributes
    )
    parts = pl.concat_str("title", pl.col("attributes").list.join(", "), separator=". ")
    return frame.with_columns(text=parts.str.strip_chars(" ."))


def _read(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """The columns as text; an id or number that is missing or no integer is refused by row."""
    frame = pl.read_csv(path, separator="\t", infer_schema=False, quote_char=None)
    need_columns(frame, columns, path)
    for name in columns:
        if name in ("title", "attributes"):
            continue
        bad = frame[name].cast(pl.Int64, strict=False).is_null()
        if bad.any():
            row = int(bad.arg_max() or 0)
            raise DataError(
                file=str(path),
                row=row,
                column=name,
                found=repr(frame[name][row]),
                expected="an integer",
                remedy="Fetch the file again.",
            )
    return frame


def read_vectors(path: Path, items: pl.DataFrame) -> np.ndarray[Any, Any]:
    """float32 [items, width], in the order of `items`; row k of the file is item k + 1."""
    stored = np.load(path, mmap_mode="r", allow_pickle=False)
    largest = int(items["item_id"].max() or 0)  # type: ignore[arg-type]
    if stored.ndim != 2 or stored.shape[0] != largest:
        raise DataError(
            file=str(path),
            found=f"an array of shape {stored.shape}",
            expected=f"[{largest}, width]: one row an item, row k for item k + 1",
            remedy="Use the vectors of this data set, or move the file away.",
        )
    values = np.asarray(stored[items["item_id"].to_numpy() - 1], dtype=np.float32)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise DataError(
            file=str(path),
            row=int(items["item_id"][int(bad.argmax())]) - 1,
            found="NaN or infinity",
            expected="finite numbers",
            remedy="Make the vectors again; a text that is empty still needs a vector.",
        )
    return values


def main(argv: Sequence[str] | None) -> None:
    args = parser().parse_args(argv)
    progress = Progress()
    source = find_source(args.input)
    inputs = checksums(source.files)
    done = is_current(args.output, "prepare_amazon", inputs, arguments_of(args))
    if done and not args.overwrite:
        progress.say(f"{args.output} already holds these rows")
        return
    with new_folder(args.output, overwrite=args.overwrite) as folder:
        events = read_events(source.interactions, args.min_events)
        items = read_items(source.items)
        check_items(events, items, source.items)
        users = events["user_id"].n_unique()
        progress.say(f"read {events.height:,} events of {users:,} users, {items.height:,} items")
        vectors = {}
        if source.vectors is not None:
            vectors[VECTORS] = read_vectors(source.vectors, items)
        table = items_table(with_train_counts(items, events), vectors)
        splits = write_sequences(folder, events, table, row_group_rows=args.row_group_rows)
        for split in SPLITS:
            progress.say(f"{split}: {splits[split]['rows']:,} rows")
        write_manifest(
            folder,
            {
                "tool": "prepare_amazon",
                "input": inputs,
                "arguments": arguments_of(args),
                "protocol": "leave-last-out, whole histories",
                "splits": splits,
                "item": "item_id",
                "vectors": sorted(vectors),
            },
        )
    progress.say(f"wrote {args.output}")


if __name__ == "__main__":
    run(main)
