# SPDX-License-Identifier: Apache-2.0
"""Amazon files to rows: what is read, kept and refused; the real set where it lies."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import polars as pl
import prepare_amazon
import pytest

from tzgen.errors import DataError, UserError

BEAUTY = Path(__file__).resolve().parents[3] / "shared" / "data" / "amazon-beauty-2014"


def write_source(folder: Path, *, vectors: bool = True, bad: str = "") -> Path:
    """Five users of 3 to 7 events over six items."""
    folder.mkdir(parents=True)
    lines = ["user_id\treviewer_id\titem_id\tasin\tpos\tunix_ts"]
    for user in range(1, 6):
        for pos in range(user + 2):
            item = (user + 2 * pos) % 6 + 1
            lines.append(f"{user}\tR{user}\t{item}\tA{item}\t{pos}\t{1_300_000_000 + pos * 86_400}")
    if bad:
        lines[4] = bad
    text = "\n".join(lines) + "\n"
    (folder / "interactions.tsv.gz").write_bytes(gzip.compress(text.encode()))
    items = ["item_id\tasin\ttitle\tattributes"]
    items += [f'{i}\tA{i}\tThing "{i}\tUnknown|Makeup|Nails' for i in range(1, 6)]
    items.append("6\tA6\t\t")
    (folder / "items.tsv").write_text("\n".join(items) + "\n")
    if vectors:
        np.save(folder / "item_text_emb_test_4_f16.npy", np.arange(24.0).reshape(6, 4))
    return folder


def run(folder: Path, *flags: str) -> Path:
    output = folder.parent / "rows"
    prepare_amazon.main(["--input", str(folder), "--output", str(output), *flags])
    return output


def test_users_too_short_are_named_or_left_out(tmp_path: Path) -> None:
    """Line 4 is user 2's first event; as user 9's only one it is too few, and user 2 keeps 3."""
    source = write_source(tmp_path / "raw", bad="9\tR9\t1\tA1\t0\t1300000000")
    with pytest.raises(DataError, match=r"1 users .* user 9 with 1.*--min_events 0 to leave them"):
        run(source)
    test = pl.read_parquet(run(source, "--min_events", "0") / "test" / "*.parquet")
    assert test["user_id"].to_list() == [1, 2, 3, 4, 5]


def test_rows_items_and_manifest(tmp_path: Path) -> None:
    output = run(write_source(tmp_path / "raw"))
    items = pl.read_parquet(output / "items" / "*.parquet")
    assert items["text"].to_list() == [f'Thing "{i}. Makeup, Nails' for i in range(1, 6)] + [""]
    assert items["item_emb"].to_list()[5] == [20.0, 21.0, 22.0, 23.0]
    test = pl.read_parquet(output / "test" / "*.parquet").row(0, named=True)
    assert test["uih__item_id"] == [2, 4] and test["target_item_id"] == 6
    train = pl.read_parquet(output / "train" / "*.parquet").row(0, named=True)
    assert train["uih__item_id"] == [] and train["target_item_id"] == 2
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["splits"]["test"] == {
        "rows": 5, "mean_history": 4.0, "longest_history": 6
    }  # fmt: skip
    assert manifest["vectors"] == ["item_emb"]


def test_the_second_run_has_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(tmp_path / "raw")
    written = (run(source) / "manifest.json").stat().st_mtime_ns
    output = run(source)
    assert "already holds these rows" in capsys.readouterr().out
    assert (output / "manifest.json").stat().st_mtime_ns == written


def test_a_set_without_vectors_has_no_such_column(tmp_path: Path) -> None:
    output = run(write_source(tmp_path / "raw", vectors=False))
    assert "item_emb" not in pl.read_parquet(output / "items" / "*.parquet").columns


def test_broken_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"interactions\.tsv"):
        run(tmp_path / "empty")
    broken = write_source(tmp_path / "broken", bad="1\tR1\tnone\tA1\t0\t1300000000")
    with pytest.raises(DataError, match=r"item_id.*(?s:.)*'none'"):
        run(broken)
    assert not (tmp_path / "rows").exists()


def test_vectors_of_another_catalogue_or_with_nan_are_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "raw", vectors=False)
    np.save(source / "a_emb.npy", np.zeros((5, 4)))
    with pytest.raises(DataError, match=r"shape \(5, 4\)"):
        run(source)
    values = np.zeros((6, 4))
    values[2, 1] = np.nan
    np.save(source / "a_emb.npy", values)
    with pytest.raises(DataError, match="NaN"):
        run(source)
    np.save(source / "b_emb.npy", np.zeros((6, 4)))
    with pytest.raises(UserError, match="2 arrays"):
        run(source)


def test_the_real_set(tmp_path: Path) -> None:
    if not BEAUTY.is_dir():
        pytest.skip("shared/data/amazon-beauty-2014 is absent")
    output = tmp_path / "rows"
    prepare_amazon.main(["--input", str(BEAUTY), "--output", str(output)])
    splits = json.loads((output / "manifest.json").read_text())["splits"]
    assert splits["items"] == {"rows": 12101, "cold": 33}
    assert [splits[name]["rows"] for name in ("train", "valid", "test")] == [22363] * 3
