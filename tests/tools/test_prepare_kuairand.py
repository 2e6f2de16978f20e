# SPDX-License-Identifier: Apache-2.0
"""KuaiRand rows against brute force, against a changed future, and against broken inputs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import polars as pl
import prepare_kuairand
import pytest
from conftest import FIRST_MIDNIGHT_MS, kuairand_log, write_kuairand
from kuairand_features import COUNTERS, FEATURES

from tzgen.errors import DataError, UserError

SPLITS = ("train", "valid", "test")
LABELS = {"is_click": 1, "is_like": 2, "long_view": 64}


def prepare(source: Path, output: Path, *more: str) -> pl.DataFrame:
    prepare_kuairand.main(["--input", str(source), "--output", str(output), *more])
    return rows_of(output)


def rows_of(output: Path) -> pl.DataFrame:
    parts = [
        pl.read_parquet(output / s / "*.parquet").with_columns(split=pl.lit(s)) for s in SPLITS
    ]
    return pl.concat(parts)


def events_of(source: Path) -> list[dict]:
    """Every event as the rows should know it, by loops alone."""
    log = pl.concat([pl.read_parquet(p) for p in sorted(source.glob("log_standard_*"))])
    log = log.unique(["user_id", "video_id", "time_ms"], keep="first", maintain_order=True)
    events = []
    for row in pl.read_parquet(source / "user_history_x.parquet").iter_rows(named=True):
        for video in row["watch_seq"]:
            action = 256 + 2 * (video in row["like_seq"]) + 64 * (video in row["long_watch_seq"])
            events.append((row["user_id"], video, row["last_time_ms"], action, 0, -1, 0))
    for row in log.iter_rows(named=True):
        action = sum(bit for name, bit in LABELS.items() if row[name])
        watched = row["play_time_ms"] // 1000
        events.append(
            (row["user_id"], row["video_id"], row["time_ms"], action, watched, row["tab"], 1)
        )
    names = ("user", "video", "time", "action", "watchtime", "tab", "logged")
    return [dict(zip(names, event, strict=True)) for event in events]


def test_candidates_are_the_log_without_repeats(kuairand: Path, prepared_kuairand: Path) -> None:
    rows = rows_of(prepared_kuairand)
    keys = rows.explode([n for n in rows.columns if n.startswith("cand__")])
    found = sorted(keys.select("user_id", "cand__video_id", "cand__time_ms", "cand__action").rows())
    logged = [e for e in events_of(kuairand) if e["logged"]]
    assert found == sorted((e["user"], e["video"], e["time"], e["action"]) for e in logged)
    manifest = json.loads((prepared_kuairand / "manifest.json").read_text())
    assert sum(manifest["splits"][s]["candidates"] for s in SPLITS) == len(logged)
    assert manifest["splits"]["test"]["mean_label"]["is_click"] == pytest.approx(
        keys.filter(pl.col("split") == "test").select((pl.col("cand__action") & 1).mean()).item(),
        abs=1e-5,
    )


def test_histories_hold_what_came_before_the_request(
    kuairand: Path, prepared_kuairand: Path
) -> None:
    events, checked = events_of(kuairand), 0
    for row in rows_of(prepared_kuairand).iter_rows(named=True):
        request = min(row["cand__time_ms"])
        before = [e for e in events if e["user"] == row["user_id"] and e["time"] < request]
        before.sort(key=lambda e: e["time"])  # stable: a summary keeps its order
        assert row["uih__video_id"] == [e["video"] for e in before]
        assert row["uih__action"] == [e["action"] for e in before]
        assert row["uih__watchtime"] == [e["watchtime"] for e in before]
        assert row["uih__timestamp"] == [e["time"] // 1000 for e in before]
        assert row["uih__tab"] == [e["tab"] for e in before]
        assert set(row["cand__timestamp"]) == {row["request_time"]} == {request // 1000}
        assert max(row["cand__time_ms"]) - request <= 600_000 * len(row["cand__time_ms"])
        checked += len(before)
    assert checked > 1000


def test_counters_equal_brute_force(kuairand: Path, prepared_kuairand: Path) -> None:
    events = events_of(kuairand)
    videos = pl.read_csv(kuairand / "video_features_basic_pure.csv").rows_by_key("video_id")
    of = {
        "video_id": lambda e: e["video"],
        "author_id": lambda e: e["video"] // 3,
        "tag": lambda e: str(videos[e["video"]][0][-1]).split(",")[0],
        "tab": lambda e: e["tab"],
        "user_id": lambda e: e["user"],
    }
    for row in rows_of(prepared_kuairand).sample(25, seed=1).iter_rows(named=True):
        request = min(row["cand__time_ms"])
        earlier = [e for e in events if e["time"] < request]
        logged = sum(e["logged"] for e in earlier)
        clicks = sum(e["action"] & 1 for e in earlier)
        prior = (clicks + 1) / (logged + 4)
        for place, video in enumerate(row["cand__video_id"]):
            mine = {"user": row["user_id"], "video": video, "tab": row["cand__tab"][place]}
            for name, (keys, strength) in COUNTERS.items():
                same = [e for e in earlier if all(of[k](e) == of[k](mine) for k in keys)]
                if "tab" in keys:
                    same = [e for e in same if e["logged"]]
                count, click, *_ = row[f"cand__{name}"][place]
                assert count == pytest.approx(math.log1p(len(same)), rel=1e-6), name
                hits = sum(e["action"] & 1 for e in same) + strength * prior
                rate = hits / (sum(e["logged"] for e in same) + strength)
                shift = math.log(rate / (1 - rate)) - math.log(prior / (1 - prior))
                assert click == pytest.approx(shift, abs=1e-5), name


def test_the_future_changes_nothing_that_a_model_may_read(tmp_path: Path) -> None:
    log = kuairand_log(3)
    moment = FIRST_MIDNIGHT_MS + 9 * 86_400_000
    later = pl.col("time_ms") >= moment
    flipped = log.with_columns(
        [pl.when(later).then(1 - pl.col(n)).otherwise(pl.col(n)).alias(n) for n in LABELS]
        + [pl.when(later).then(0).otherwise(pl.col("play_time_ms")).alias("play_time_ms")]
    )
    first = prepare(write_kuairand(tmp_path / "a", log), tmp_path / "rows_a")
    second = prepare(write_kuairand(tmp_path / "b", flipped), tmp_path / "rows_b")
    readable = [n for n in first.columns if n.startswith("uih__") or n in FEATURES]
    assert len(readable) > 30 and "cand__action" not in readable
    until = first["cand__time_ms"].list.min() <= moment
    assert 0 < until.sum() < first.height
    assert first.filter(until).select(readable).equals(second.filter(until).select(readable))
    assert not first["cand__action"].equals(second["cand__action"])
    # and a request after the moment does see what happened between
    assert not first["cand__user_stats"].equals(second["cand__user_stats"])


def test_splits_follow_the_dates(prepared_kuairand: Path) -> None:
    rows = rows_of(prepared_kuairand)
    dates = rows.group_by("split").agg(low=pl.col("date").min(), high=pl.col("date").max())
    bounds = {split: (low, high) for split, low, high in dates.rows()}
    assert bounds["train"][1] <= 20220504
    assert bounds["valid"] == (20220505, 20220505)
    assert bounds["test"][0] >= 20220506
    both = pl.read_parquet(prepared_kuairand / "trainval" / "*.parquet")
    assert both.height == rows.filter(pl.col("split") != "test").height
    local_day = (pl.element() - FIRST_MIDNIGHT_MS) // 86_400_000
    assert rows["cand__time_ms"].list.eval(local_day).list.n_unique().max() == 1
    assert rows.filter(pl.col("cand__time_ms").list.len() > 1).height > 10


def test_row_groups_and_limits(kuairand: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    more = ("--row_group_rows", "7", "--max_history", "5", "--max_candidates", "1")
    rows = prepare(kuairand, tmp_path / "rows", *more)
    assert rows["uih__video_id"].list.len().max() == 5
    assert rows["cand__video_id"].list.len().max() == 1
    file = pq.ParquetFile(tmp_path / "rows" / "train" / "part-0.parquet")
    assert {file.metadata.row_group(i).num_rows for i in range(file.num_row_groups - 1)} == {7}


def test_repeated_lines_can_be_kept(kuairand: Path, tmp_path: Path) -> None:
    rows = prepare(kuairand, tmp_path / "rows", "--keep_duplicates")
    logged = sum(e["logged"] for e in events_of(kuairand))
    assert rows["cand__video_id"].list.len().sum() == logged + 1


def test_a_second_run_has_nothing_to_do_and_another_is_refused(
    kuairand: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows"
    prepare(kuairand, output)
    before = (output / "manifest.json").stat().st_mtime_ns
    prepare(kuairand, output)
    assert "already holds" in capsys.readouterr().out
    assert (output / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="--overwrite"):
        prepare(kuairand, output, "--session_gap", "60")
    prepare(kuairand, output, "--session_gap", "60", "--overwrite")
    assert json.loads((output / "manifest.json").read_text())["arguments"]["session_gap"] == 60
    assert [p.name for p in tmp_path.iterdir()] == ["rows"]


def test_folders_of_others_are_left_alone(kuairand: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="did not write it"):
        prepare(kuairand, tmp_path, "--overwrite")
    assert (tmp_path / "letter.txt").exists()


def test_a_failure_leaves_nothing_behind(kuairand: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split valid is empty"):
        prepare(kuairand, tmp_path / "rows", "--valid_from", "20220506")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["video_features_basic_pure.csv", "user_features_pure.csv", "log_standard_*"]
)
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    source = write_kuairand(tmp_path / "raw", kuairand_log())
    for path in source.glob(name):
        path.unlink()
    with pytest.raises(DataError, match=name.removesuffix("*")):
        prepare(source, tmp_path / "rows")


@pytest.mark.parametrize(
    "name, column",
    [
        ("log_standard_a.parquet", "long_view"),
        ("user_history_x.parquet", "watch_seq"),
        ("video_features_basic_pure.csv", "tag"),
        ("user_features_pure.csv", "register_days_range"),
    ],
)
def test_missing_columns_are_named(tmp_path: Path, name: str, column: str) -> None:
    path = write_kuairand(tmp_path / "raw", kuairand_log()) / name
    table = prepare_kuairand.read_table(path).drop(column)
    table.write_parquet(path) if path.suffix == ".parquet" else table.write_csv(path)
    with pytest.raises(DataError) as error:
        prepare(path.parent, tmp_path / "rows")
    assert error.value.column == column and name in error.value.file


def test_videos_without_features_are_named(tmp_path: Path) -> None:
    path = write_kuairand(tmp_path / "raw", kuairand_log()) / "video_features_basic_pure.csv"
    pl.read_csv(path).filter(pl.col("video_id") != 2).write_csv(path)
    with pytest.raises(DataError, match=r"1 videos, e.g. 2"):
        prepare(path.parent, tmp_path / "rows")


def test_the_command_ends_without_a_traceback(tmp_path: Path) -> None:
    tool = Path(prepare_kuairand.__file__)
    command = [sys.executable, str(tool), "--input", str(tmp_path / "no")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tool.parents[1])
    assert done.returncode == 2
    assert "is not a folder" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_real_log(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "kuairand-pure-subset"
    rows = prepare(source, tmp_path / "rows", "--max_history", "20")
    manifest = json.loads((tmp_path / "rows" / "manifest.json").read_text())
    counts = {name: split["candidates"] for name, split in manifest["splits"].items()}
    assert counts == {"train": 166_932, "valid": 13_090, "test": 42_422, "trainval": 180_022}
    newest = rows["uih__timestamp"].list.max()
    assert (newest <= rows["request_time"]).fill_null(True).all()
    stats = rows.select(pl.col("cand__video_stats").explode().list.to_array(4)).to_series()
    assert stats.null_count() == 0
