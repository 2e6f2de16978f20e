# SPDX-License-Identifier: Apache-2.0
"""MovieLens rows in every layout, against brute force and broken inputs; the download, faked."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import zipfile
from itertools import pairwise
from pathlib import Path

import movielens_files
import numpy as np
import polars as pl
import prepare_movielens
import pytest

from tzgen.errors import DataError, UserError

Rating = tuple[int, int, int, int]
SPLITS = ("train", "valid", "test")


def ratings(seed: int = 0) -> list[Rating]:
    """(user, movie, rating, second) in no order; pages of ratings share a second."""
    rng = np.random.default_rng(seed)
    found = []
    for user in range(1, 9):
        second = 880_000_000 + user * 40_000
        for movie in rng.permutation(40)[:30] + 1:
            second += int(rng.choice([0, 0, 3, 50, 9_000]))
            found.append((user, int(movie), int(rng.integers(1, 6)), second))
    return [found[i] for i in rng.permutation(len(found))]


def write_100k(folder: Path, rows: list[Rating]) -> Path:
    folder.mkdir()
    data = "".join(f"{u}\t{m}\t{r}\t{t}\n" for u, m, r, t in rows)
    (folder / "u.data.gz").write_bytes(gzip.compress(data.encode()))
    flags = "|".join("1" if g in ("Comedy", "Drama") else "0" for g in movielens_files.GENRES)
    items = [f"{m}|Amélie {m} (19{50 + m})|01-Jan-1995||url|{flags}" for m in range(1, 41)]
    items[6] = f"7|unknown|||| {flags}".replace("| ", "|")
    (folder / "u.item").write_bytes("\n".join(items).encode("latin-1"))
    (folder / "u.user").write_text("".join(f"{u}|{u + 20}|F|artist|0{u}210\n" for u in range(1, 9)))
    return folder


def recbole_files(rows: list[Rating]) -> dict[str, str]:
    inter = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    item = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    user = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    years = {m: str(1950 + m) for m in range(1, 41)} | {7: "unknown"}
    return {
        "ml-100k.inter": inter + "".join(f"{u}\t{m}\t{r}\t{t}\n" for u, m, r, t in rows),
        "ml-100k.item": item
        + "".join(f"{m}\tAmelie {m}\t{years[m]}\tComedy Drama\n" for m in range(1, 41)),
        "ml-100k.user": user + "".join(f"{u}\t{u + 20}\tF\tartist\t0{u}210\n" for u in range(1, 9)),
    }


def write_1m(folder: Path, rows: list[Rating], *, ordered: bool) -> Path:
    folder.mkdir()
    movies = "".join(f"{m}::Amélie {m} (19{50 + m})::Comedy|Drama\n" for m in range(1, 41))
    (folder / "movies.dat").write_bytes(movies.encode("latin-1"))
    (folder / "users.dat").write_text("".join(f"{u}::F::25::2::0{u}210\n" for u in range(1, 9)))
    if not ordered:
        (folder / "ratings.dat").write_text("".join(f"{u}::{m}::{r}::{t}\n" for u, m, r, t in rows))
        return folder
    lines = ["user_id\tmovie_id\trating\tchrono_rank\tts_coarse\tts_exact"]
    for user in range(1, 9):
        mine = sorted((r for r in rows if r[0] == user), key=lambda r: r[3])
        for rank, (u, m, r, t) in enumerate(mine, start=1):
            exact = str(t) if rank > len(mine) - 2 else ""
            coarse = str(round(t, -3)) if rank % 3 and not exact else ""
            lines.append(f"{u}\t{m}\t{r}\t{'' if rank == 4 else rank}\t{coarse}\t{exact}")
    (folder / "ratings_ordered.tsv").write_text("\n".join(lines) + "\n")
    return folder


def prepare(source: Path, output: Path, *more: str) -> pl.DataFrame:
    prepare_movielens.main(["--input", str(source), "--output", str(output), *more])
    return rows_of(output)


def rows_of(output: Path) -> pl.DataFrame:
    parts = [
        pl.read_parquet(output / s / "*.parquet").with_columns(split=pl.lit(s)) for s in SPLITS
    ]
    return pl.concat(parts)


def test_rows_equal_brute_force(tmp_path: Path) -> None:
    data = ratings()
    rows = prepare(write_100k(tmp_path / "raw", data), tmp_path / "rows", "--max_history", "12")
    seen = []
    for row in rows.iter_rows(named=True):
        user, request = row["user_id"], row["request_time"]
        before = sorted((r for r in data if r[0] == user and r[3] < request), key=lambda r: r[3])
        times = row["uih__timestamp"]
        assert times == [r[3] for r in before][-12:]
        assert all(t < request for t in times)
        known = {(r[1], r[3]) for r in before}
        assert set(zip(row["uih__movie_id"], times, strict=True)) <= known
        own = [t // 1000 for t in row["cand__time_ms"]]
        assert min(own) == request and set(row["cand__timestamp"]) == {request}
        assert len(own) <= 10
        assert all(b - a <= 1800 for a, b in pairwise(own))
        for movie, rating, second, action in zip(
            row["cand__movie_id"], row["cand__rating"], own, row["cand__action"], strict=True
        ):
            seen.append((user, movie, int(rating), second))
            assert action == (rating >= 4) + 2 * (rating <= 2) + 4 * 2 ** (int(rating) - 1)
    assert sorted(seen) == sorted(data)


def test_the_split_is_by_time_over_all_users(tmp_path: Path) -> None:
    rows = prepare(write_100k(tmp_path / "raw", ratings()), tmp_path / "rows")
    spans = {
        split: part.explode("cand__time_ms")["cand__time_ms"]
        for (split,), part in rows.group_by("split")
    }
    assert spans["train"].max() < spans["valid"].min() <= spans["valid"].max() < spans["test"].min()
    assert abs(len(spans["train"]) / 240 - 0.8) < 0.05
    splits = json.loads((tmp_path / "rows" / "manifest.json").read_text())["splits"]
    old = set(rows.filter(pl.col("split") == "train")["user_id"])
    new = set(rows.filter(pl.col("split") == "test")["user_id"]) - old
    assert splits["test"]["users_not_in_train"] == len(new) > 0


def test_both_100k_layouts_give_the_same_rows(tmp_path: Path) -> None:
    data = ratings(1)
    folder = tmp_path / "recbole"
    folder.mkdir()
    for name, text in recbole_files(data).items():
        (folder / name).write_text(text)
    ours = prepare(folder, tmp_path / "a")
    theirs = prepare(write_100k(tmp_path / "raw", data), tmp_path / "b")
    assert ours.equals(theirs)
    assert ours["uih__genres"].explode().explode().drop_nulls().unique().sort().to_list() == [
        "Comedy",
        "Drama",
    ]
    assert 0 in ours["cand__year"].explode() and 1951 in ours["cand__year"].explode()


def test_1m_standard_layout(tmp_path: Path) -> None:
    rows = prepare(write_1m(tmp_path / "raw", ratings(), ordered=False), tmp_path / "rows")
    assert rows["cand__movie_id"].list.len().sum() == 240
    assert rows["occupation"].unique().to_list() == ["2"]
    assert rows["zip_code"].str.starts_with("0").all()


def test_1m_re_joined_layout_goes_by_rank(tmp_path: Path) -> None:
    data = ratings()
    rows = prepare(write_1m(tmp_path / "raw", data, ordered=True), tmp_path / "rows")
    assert rows["cand__movie_id"].list.len().sum() == 240 - 8  # one rank a user is blank
    for user in range(1, 9):
        mine = [r[1] for r in sorted((r for r in data if r[0] == user), key=lambda r: r[3])]
        del mine[3]
        for row in rows.filter(pl.col("user_id") == user).iter_rows(named=True):
            place = mine.index(row["cand__movie_id"][0])
            assert row["uih__movie_id"] == mine[:place]
            assert row["uih__timestamp"] == sorted(row["uih__timestamp"])
            assert all(t <= row["request_time"] for t in row["uih__timestamp"])
    note = json.loads((tmp_path / "rows" / "manifest.json").read_text())["note"]
    assert "8 ratings without a rank" in note and "interpolated" in note


def fake_pip(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], status: int = 0) -> list[str]:
    """subprocess.run that writes the wheel instead of downloading it; its command lines."""
    calls: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(" ".join(command))
        if status == 0:
            cache = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(cache / "recbole-1.2.1-py3-none-any.whl", "w") as wheel:
                for name, text in files.items():
                    wheel.writestr(f"{movielens_files.INSIDE_WHEEL}/{name}", text)
        return subprocess.CompletedProcess(command, status, "", "ERROR: no route to index")

    monkeypatch.setattr(movielens_files.subprocess, "run", run)
    return calls


def test_100k_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = recbole_files(ratings())
    body = files["ml-100k.inter"].split("\n", 1)[1].encode()
    monkeypatch.setattr(movielens_files, "RATINGS_MD5", hashlib.md5(body).hexdigest())
    calls = fake_pip(monkeypatch, files)
    where = ["--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "rows")]
    prepare_movielens.main(where)
    prepare_movielens.main(where)
    assert len(calls) == 1 and "recbole==1.2.1" in calls[0] and "--no-deps" in calls[0]
    assert rows_of(tmp_path / "rows")["cand__movie_id"].list.len().sum() == 240


def test_a_download_that_fails_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, {}, status=1)
    with pytest.raises(UserError, match=r"no route to index.*--input"):
        movielens_files.fetch_100k(tmp_path)


def test_a_download_with_other_ratings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, recbole_files(ratings()))
    with pytest.raises(DataError, match="MD5"):
        movielens_files.fetch_100k(tmp_path)
    assert not (tmp_path / "ml-100k" / "ml-100k.inter").exists()


def test_broken_inputs_are_named(tmp_path: Path) -> None:
    source, output = write_100k(tmp_path / "raw", ratings()), tmp_path / "rows"
    with pytest.raises(UserError, match="not a folder"):
        prepare(tmp_path / "no", output)
    with pytest.raises(DataError, match=r"u\.data"):
        prepare(tmp_path, output)
    with pytest.raises(UserError, match="shares above 0"):
        prepare(source, output, "--valid_share", "0.7", "--test_share", "0.4")
    text = gzip.decompress((source / "u.data.gz").read_bytes()).decode()
    (source / "u.data").write_text("1\t2\tfive\t880000000\n" + text)
    with pytest.raises(DataError, match="'five'") as error:
        prepare(source, output)
    assert (error.value.column, error.value.row) == ("rating", 0)
    (source / "u.data").write_text("1\t2\n")
    with pytest.raises(DataError, match="2 columns"):
        prepare(source, output)
    (source / "u.data").write_text("1\t99\t3\t880000000\n" + text)
    with pytest.raises(DataError, match=r"e.g. 99") as error:
        prepare(source, output)
    assert error.value.column == "movie_id" and "u.item" in error.value.file
    (source / "u.user").unlink()
    with pytest.raises(DataError, match=r"u\.user"):
        prepare(source, output)
    assert not output.exists()


def test_real_100k_and_1m(real_data: Path, tmp_path: Path) -> None:
    rows = prepare(real_data / "ml-100k", tmp_path / "100k")
    splits = json.loads((tmp_path / "100k" / "manifest.json").read_text())["splits"]
    assert {name: split["candidates"] for name, split in splits.items()} == {
        "train": 79_999,
        "valid": 10_001,
        "test": 10_000,
    }
    newest = rows["uih__timestamp"].list.max()
    assert (newest < rows["request_time"]).fill_null(True).all()
    tables = movielens_files.read_tables(real_data / "ml-1m")
    assert tables.ratings.height == 999_611
    assert tables.ratings["timestamp"].null_count() == 0
    assert tables.ratings.select((pl.col("timestamp").diff().over("user_id") < 0).sum()).item() == 0
