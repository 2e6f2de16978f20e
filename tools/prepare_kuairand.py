# SPDX-License-Identifier: Apache-2.0
"""KuaiRand-Pure logs (arXiv 2208.08696) to rows: one user x request window each.

    python tools/prepare_kuairand.py --input FOLDER --output data/kuairand

FOLDER holds `log_standard_*` (parquet or csv), `video_features_basic_pure.csv`,
`user_features_pure.csv` (each also .gz) and, where the log was cut, `user_history_*.parquet` with
what came before it: per user the last videos watched, liked and watched long, and one time.

Rows. A window ends with a pause of --session_gap seconds (600: in this log no video is then still
playing, so all feedback in a history was complete at the request), at midnight of the log's `date`,
or at --max_candidates. All candidates of a row share the request time, that of the first of them.
Lines of the log that repeat user, video and time (2.6 %, nearly all in tab 6) are one event.

History (`uih__`): events strictly before the request. `action` is a bitmask: is_click 1, is_like 2,
is_follow 4, is_comment 8, is_forward 16, is_hate 32, long_view 64, is_profile_enter 128. Events of
the history file carry 256 (clicks were not recorded), 64 or 2 where the video is among the user's
long or liked ones (approximate for repeated videos), tab -1, watch time 0 and the one time that is
known: requests after it see them, requests before it do not.

Candidates (`cand__`): ids, side information, labels (`action`, `watchtime`), the event's own time
(`time_ms`, a key for reports, not a feature), and counters as of the request time: [log1p(events),
log-odds of click, of long view, of like against all events so far] by video, author, tag, tab and
user and their crosses. The statistic columns of video_features.parquet are not read: they are
totals over a month that contains the test days.

Splits by `date`: train before --valid_from, valid before --test_from, test; trainval is both of the
first two. Counters and histories go on through all of them, as they would in service.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from kuairand_features import (
    CONTEXT,
    FEATURES,
    candidate_columns,
    context_columns,
    history_columns,
)
from point_in_time import Ranges, Windows, cut_windows
from prepared import (
    Manifest,
    Progress,
    arguments_of,
    checksums,
    describe,
    find_input,
    is_current,
    need_columns,
    new_folder,
    run,
    write_manifest,
    write_split,
)

from tzgen.errors import DataError, UserError

BITS = {
    "is_click": 1,
    "is_like": 2,
    "is_follow": 4,
    "is_comment": 8,
    "is_forward": 16,
    "is_hate": 32,
    "long_view": 64,
    "is_profile_enter": 128,
}
SUMMARY_BIT = 256
LOG_COLUMNS = ("user_id", "video_id", "date", "time_ms", "tab", "play_time_ms", *BITS)
SUMMARY_COLUMNS = ("user_id", "last_time_ms", "watch_seq", "like_seq", "long_watch_seq")
TASKS = {
    name: {"column": "cand__action", "bitmask": BITS[name]}
    for name in ("is_click", "long_view", "is_like")
}


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--input", type=Path, required=True, help="folder of the data set")
    flags.add_argument("--output", type=Path, default=Path("data/kuairand"))
    flags.add_argument("--valid_from", type=int, default=20220505, help="first date of validation")
    flags.add_argument("--test_from", type=int, default=20220506, help="first date of the test")
    flags.add_argument("--session_gap", type=int, default=600, help="seconds that end a window")
    flags.add_argument("--max_candidates", type=int, default=20, help="candidates in a row")
    flags.add_argument("--max_history", type=int, default=100, help="newest events that are kept")
    flags.add_argument("--row_group_rows", type=int, default=10_000)
    flags.add_argument(
        "--keep_duplicates", action="store_true", help="keep repeated lines of the log"
    )
    flags.add_argument("--overwrite", action="store_true", help="replace rows in --output")
    return flags


def read_table(path: Path) -> pl.DataFrame:
    if path.name.endswith(".parquet"):
        return pl.read_parquet(path)
    return pl.read_csv(path, infer_schema_length=None)


def read_log(paths: Sequence[Path], *, keep_duplicates: bool) -> pl.DataFrame:
    """Events of the log in the common form: see read_summary."""
    parts = []
    for path in paths:
        table = read_table(path)
        need_columns(table, LOG_COLUMNS, path)
        parts.append(table.select(pl.col(LOG_COLUMNS).cast(pl.Int64)))
    log = pl.concat(parts)
    if not keep_duplicates:
        log = log.unique(["user_id", "video_id", "time_ms"], keep="first", maintain_order=True)
    action = pl.sum_horizontal((pl.col(name) != 0).cast(pl.Int64) * b for name, b in BITS.items())
    return log.select(
        "user_id",
        "video_id",
        "date",
        "tab",
        time="time_ms",
        action=action,
        watchtime=pl.col("play_time_ms") // 1000,
        candidate=pl.lit(True),
    )


def read_summary(path: Path, date: int) -> pl.DataFrame:
    """What came before the log, as events: user_id, video_id, date, tab, time, action, watchtime.

    All events of a user get the user's one time, in their order.
    """
    table = read_table(path)
    need_columns(table, SUMMARY_COLUMNS, path)
    events = table.select(SUMMARY_COLUMNS).explode("watch_seq").drop_nulls("watch_seq")
    liked = pl.col("watch_seq").is_in(pl.col("like_seq")).cast(pl.Int64)
    long = pl.col("watch_seq").is_in(pl.col("long_watch_seq")).cast(pl.Int64)
    return events.select(
        "user_id",
        video_id="watch_seq",
        date=pl.lit(date, pl.Int64),
        tab=pl.lit(-1, pl.Int64),
        time="last_time_ms",
        action=SUMMARY_BIT + BITS["is_like"] * liked + BITS["long_view"] * long,
        watchtime=pl.lit(0, pl.Int64),
        candidate=pl.lit(False),
    )


def read_videos(path: Path) -> pl.DataFrame:
    """video_id, author_id, music_id, video_type, upload_type, tags (list), tag (first), duration
    in seconds, uploaded in days since 1970."""
    videos = read_table(path)
    text = ("video_type", "upload_type", "upload_dt", "tag")
    need_columns(videos, ("video_id", "author_id", "music_id", "video_duration", *text), path)
    tags = pl.col("tag").cast(pl.String).str.split(",").cast(pl.List(pl.Int64), strict=False)
    return videos.select(
        pl.col("video_id", "author_id", "music_id").cast(pl.Int64),
        "video_type",
        "upload_type",
        tags=tags.list.drop_nulls().fill_null([]),
        tag=tags.list.first().fill_null(-1),
        duration=pl.col("video_duration").cast(pl.Float32).fill_null(0.0) / 1000,
        uploaded=pl.col("upload_dt").str.to_date().cast(pl.Int32),
    )


def read_inputs(args: argparse.Namespace) -> tuple[pl.DataFrame, pl.DataFrame, list[Path]]:
    """Events with their videos, sorted by user and time; user features; the files read."""
    if not args.input.is_dir():
        raise UserError(f"--input {args.input} is not a folder; expected the data set's files")
    logs = sorted(p for p in args.input.glob("log_standard_*") if ".part" not in p.name)
    if not logs:
        raise DataError(
            file=str(args.input),
            found="no log_standard_*",
            expected="the logs of KuaiRand-Pure",
            remedy="Point --input at the folder that holds them.",
        )
    summaries = sorted(args.input.glob("user_history_*.parquet"))
    video_path = find_input(args.input, ["video_features_basic_pure.csv"], "video features")
    user_path = find_input(args.input, ["user_features_pure.csv"], "user features")
    log = read_log(logs, keep_duplicates=args.keep_duplicates)
    first_date = int(log["date"].min() or 0)  # type: ignore[arg-type]
    before = [read_summary(path, first_date - 1) for path in summaries]
    events = pl.concat([*before, log]).sort("user_id", "time", maintain_order=True)
    videos = read_videos(video_path)
    events = events.join(videos, on="video_id", how="left", maintain_order="left")
    unknown = events.filter(pl.col("author_id").is_null())["video_id"]
    if unknown.len():
        raise DataError(
            file=str(video_path),
            column="video_id",
            found=f"no row for {unknown.n_unique()} videos, e.g. {unknown[0]}",
            expected="every video of the log",
            remedy="Use the features that belong to these logs.",
        )
    users = read_table(user_path)
    need_columns(users, ("user_id", *CONTEXT), user_path)
    return events, users, [*logs, *summaries, video_path, user_path]


def windows_of(events: pl.DataFrame, args: argparse.Namespace) -> Windows:
    return cut_windows(
        events["user_id"].to_numpy(),
        events["time"].to_numpy(),
        candidate=events["candidate"].to_numpy(),
        apart=events["date"].to_numpy(),
        max_gap=args.session_gap * 1000,
        max_candidates=args.max_candidates,
        max_history=args.max_history,
    )


def build_rows(events: pl.DataFrame, users: pl.DataFrame, windows: Windows) -> pa.Table:
    """All rows in the order of their requests, with the column `date` for splitting."""
    in_time = np.argsort(events["time"].to_numpy()[windows.start], kind="stable")
    candidates = Ranges(windows.start[in_time], windows.end[in_time])
    history = Ranges(windows.history_start[in_time], windows.history_end[in_time])
    start = windows.start[in_time]
    request = pl.DataFrame(
        {
            "user_id": events["user_id"].to_numpy()[start],
            "date": events["date"].to_numpy()[start],
            "request_ms": events["time"].to_numpy()[start],
        }
    )
    columns = dict(context_columns(request, users))
    for name, column in history_columns(events).items():
        columns[f"uih__{name}"] = history.lists(column)
    sizes = windows.end[in_time] - start
    request_ms = np.repeat(request["request_ms"].to_numpy(), sizes)
    chosen = events[candidates.index].with_columns(request_time=pl.Series(request_ms))
    whole = Ranges(np.cumsum(sizes) - sizes, np.cumsum(sizes))
    for name, column in candidate_columns(events, chosen).items():
        columns[f"cand__{name}"] = whole.lists(column)
    return pa.table(columns)


def write_all(rows: pa.Table, args: argparse.Namespace, folder: Path, say: Progress) -> Manifest:
    """The splits; returns their counts."""
    date = rows["date"].to_numpy()
    parts = {
        "train": date < args.valid_from,
        "valid": (date >= args.valid_from) & (date < args.test_from),
        "test": date >= args.test_from,
        "trainval": date < args.test_from,
    }
    splits: Manifest = {}
    known = pl.Series(np.unique(rows["user_id"].to_numpy()[parts["train"]]))
    for split, mask in parts.items():
        if not mask.any():
            raise UserError(
                f"split {split} is empty: dates are {date.min()} to {date.max()}; expected "
                f"--valid_from {args.valid_from} and --test_from {args.test_from} to cut them."
            )
        part = rows.filter(pa.array(mask))
        write_split(folder, split, part, row_group_rows=args.row_group_rows)
        splits[split] = describe(part, TASKS, known)
        counts = splits[split]
        say.say(f"{split}: {counts['rows']:,} rows, {counts['candidates']:,} candidates")
    return splits


def main(argv: Sequence[str] | None) -> None:
    args = parser().parse_args(argv)
    progress = Progress()
    events, users, files = read_inputs(args)
    inputs = checksums(files)
    done = is_current(args.output, "prepare_kuairand", inputs, arguments_of(args))
    if done and not args.overwrite:
        progress.say(f"{args.output} already holds these rows")
        return
    with new_folder(args.output, overwrite=args.overwrite) as folder:
        known, log = events.height, int(events["candidate"].sum())
        progress.say(f"read {log:,} events of the log and {known - log:,} before it")
        windows = windows_of(events, args)
        progress.say(f"cut {len(windows.start):,} request windows")
        rows = build_rows(events, users, windows)
        progress.say(f"built {len(rows.column_names)} columns")
        splits = write_all(rows, args, folder, progress)
        write_manifest(
            folder,
            {
                "tool": "prepare_kuairand",
                "input": inputs,
                "arguments": arguments_of(args),
                "splits": splits,
                "tasks": TASKS,
                "action_bits": {**BITS, "before_log": SUMMARY_BIT},
                "keys": ["user_id", "cand__video_id", "cand__time_ms"],
                "item": "cand__video_id",
                "context": "cand__tab",
                "features": [*FEATURES],
            },
        )
    progress.say(f"wrote {args.output}")


if __name__ == "__main__":
    run(main)
