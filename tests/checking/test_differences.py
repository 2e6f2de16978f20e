# SPDX-License-Identifier: Apache-2.0
"""The table of differences: every one is there, under its status, equal texts once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tzgen.checking.differences import MEANING, ORDER, difference_section
from tzgen.config import Difference, differences, load_pipeline

TEXTS = sorted((Path(__file__).parents[1] / "integration" / "texts").glob("*.config"))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_every_difference_is_shown(path: Path) -> None:
    found = differences(load_pipeline(path))
    shown = difference_section(found)
    flat = " ".join(shown.split())
    assert found
    for one in found:
        assert one.path in shown
        assert " ".join(one.text.split()) in flat


def test_statuses_are_counted_and_equal_texts_share_an_entry() -> None:
    found = [
        Difference("a.x", "different", "Other."),
        Difference("b", "refused", "Not here."),
        Difference("a.y", "different", "Other."),
    ]
    lines = difference_section(found).split("\n")
    assert "  refused         1  not supported: remove it" in lines
    assert "  different       2  accepted, and gives other numbers" in lines
    assert "  addition        0  TorchEasyRec does not know it" in lines
    at = lines.index("    - Other.")
    assert lines[at + 1 : at + 3] == ["        a.x", "        a.y"]
    assert lines.index("    - Not here.") < at, "refusals come first"


def test_nothing_to_tell() -> None:
    assert "means the same in both" in difference_section([])


def test_every_status_has_a_meaning() -> None:
    assert tuple(name for name, _ in MEANING) == ORDER
