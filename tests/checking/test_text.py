# SPDX-License-Identifier: Apache-2.0
"""Columns line up, nothing passes the margin, units are right at their borders."""

from __future__ import annotations

import pytest

from tzgen.checking import text


def test_table_aligns_each_column() -> None:
    lines = text.table(("name", "n"), [("a", "1"), ("long one", "1,000")], align="lr", indent=1)
    assert lines == [" name          n", " a             1", " long one  1,000"]


def test_a_short_row_ends_early() -> None:
    assert text.table(("a", "b"), [("x",)], align="ll", indent=0) == ["a  b", "x"]


def test_the_last_column_wraps_at_the_margin() -> None:
    words = " ".join(["word"] * 60)
    (_, line) = text.table(("name", "words"), [("a", words)], align="lw")
    rows = line.split("\n")
    assert len(rows) > 2
    assert all(len(row) <= text.WIDTH for row in rows)
    assert rows[1].startswith(" " * 8 + "word")
    assert " ".join(line.split()) == "a " + words


@pytest.mark.parametrize("make", [text.bullets, lambda w: text.fields([("name", w[0])])])
def test_lists_wrap_and_hang(make) -> None:  # type: ignore[no-untyped-def]
    (block,) = make(["word " * 60])
    rows = block.split("\n")
    assert len(rows) > 2
    assert all(len(row) <= text.WIDTH for row in rows)
    column = rows[0].index("word")
    assert {len(row) - len(row.lstrip()) for row in rows[1:]} == {column}


def test_ties_hold_at_line_ends() -> None:
    (block,) = text.bullets([" ".join(f"feature_{n}{text.TIE}(16)" for n in range(40))])
    assert text.TIE not in block
    assert not any(row.lstrip().startswith("(") for row in block.split("\n"))


def test_section_heads_are_as_wide_as_the_screen() -> None:
    head, body, last = text.section("title", ["line"]).split("\n")
    assert head.startswith("== title =") and len(head) == text.WIDTH
    assert (body, last) == ("line", "")


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 * 1024, "1.5 MiB"), (2**40, "1.0 TiB")],
)
def test_size(number: int, expected: str) -> None:
    assert text.size(number) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 K"),
        (1_234_567, "1.23 M"),
        (2.5e12, "2.5 T"),
        (3e15, "3 P"),
    ],
)
def test_short(number: float, expected: str) -> None:
    assert text.short(number) == expected


def test_counts() -> None:
    assert text.plural(1, "row") == "1 row"
    assert text.plural(1200, "row") == "1,200 rows"
    assert text.share(3, 8, "row") == "3 of 8 rows (37.5 %)"
    assert text.share(0, 0, "id") == "0 of 0 ids (0.0 %)"
