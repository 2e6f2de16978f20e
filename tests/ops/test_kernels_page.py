# SPDX-License-Identifier: Apache-2.0
"""The pictures of docs/kernels.md are what the mask says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tzgen.ops.hstu_attention import MaskSpec, dense_mask

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"
PICTURES = re.findall(r"^MaskSpec\((.*)\)\n((?:[cht]  .*\n)+)", PAGE.read_text(), re.MULTILINE)


def test_there_are_pictures() -> None:
    assert len(PICTURES) >= 4


@pytest.mark.parametrize(("options", "picture"), PICTURES, ids=[options for options, _ in PICTURES])
def test_picture_is_the_mask(options: str, picture: str) -> None:
    pairs = (option.split("=") for option in options.split(", "))
    spec = MaskSpec(**{name: ast.literal_eval(value) for name, value in pairs})
    lines = picture.splitlines()
    kinds = [line[0] for line in lines]
    assert kinds.count("c") == spec.contextual_len
    mask = dense_mask(len(lines), kinds.count("t"), spec)
    drawn = [[cell == "x" for cell in line[1:].split()] for line in lines]
    assert drawn == mask.tolist()
