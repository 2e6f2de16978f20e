# SPDX-License-Identifier: Apache-2.0
"""The report says what was measured, with titles, and its plots are pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tzgen.errors import UserError
from tzgen.log import LOGGER
from tzgen.sid.bundle import Bundle, write_bundle
from tzgen.sid.collisions import resolve
from tzgen.sid.report import rows_for, write_report
from tzgen.sid.space import SidSpace
from tzgen.sid.table import make_table, resolved_table


def bundle(root: Path, n: int = 30, policy: str = "suffix") -> Bundle:
    rng = np.random.default_rng(0)
    ids = pa.array([f"item{i:02d}" for i in range(n)])
    codes = np.stack([rng.integers(0, 3, n), rng.integers(0, 4, n)], axis=1)
    table = make_table(ids, codes, SidSpace((3, 4)))
    done = resolved_table(table, resolve(table.codes, table.space, policy))
    return write_bundle(root, "g", done, policy=policy, capacity=1, notes={})


def test_the_report_has_everything(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    titles = [f"Title {i}" + " and more of it" * 10 * (i == 0) for i in range(30)]
    vectors = np.random.default_rng(1).normal(size=(30, 5)).astype(np.float32)
    path = write_report(made, tmp_path / "report", titles=titles, vectors=vectors)
    text = path.read_text()
    body = json.loads((tmp_path / "report" / "report.json").read_text())
    unique = body["quality"]["tokenizer"]["unique_ratio"]
    assert f"| tokenizer | 30 | {body['quality']['tokenizer']['distinct']} | {unique:.4f}" in text
    assert "| published | 30 | 30 | 1.0000 | 30 | 1 |" in text
    assert titles[0] not in text and titles[0][:60] in text, "long titles are cut"
    assert "neighbours with this prefix" in text
    assert len(body["neighbour_share"]["share"]) == 3
    for name in ("levels.png", "groups.png"):
        picture = (tmp_path / "report" / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) > 2000
        assert f"({name})" in text


def test_without_titles_and_vectors_items_go_by_their_ids(tmp_path: Path) -> None:
    text = write_report(bundle(tmp_path), tmp_path / "r", titles=None, vectors=None).read_text()
    assert "item00" in text and "neighbours" not in text


def test_without_matplotlib_the_report_has_no_plots_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(LOGGER, "info", lambda text, *values: said.append(text % values))
    text = write_report(bundle(tmp_path), tmp_path / "r", titles=None, vectors=None).read_text()
    assert "| published |" in text and ".png" not in text
    assert len(said) == 1 and "tzgen[plots]" in said[0]


def test_a_single_item_has_a_report(tmp_path: Path) -> None:
    vectors = np.ones((1, 2), np.float32)
    text = write_report(
        bundle(tmp_path, 1), tmp_path / "r", titles=["A"], vectors=vectors
    ).read_text()
    assert "None: every item has an ID of its own." in text


def test_rows_follow_the_table_and_a_missing_item_is_named(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    order = np.random.default_rng(0).permutation(30)
    ids = pa.array([f"item{i:02d}" for i in order] + ["other"])
    assert [ids[int(row)].as_py() for row in rows_for(made, ids, "x")] == [
        f"item{i:02d}" for i in range(30)
    ]
    with pytest.raises(UserError, match=r"1 items of the bundle are not among the titles, e\.g\."):
        rows_for(made, ids[1:], "titles")
