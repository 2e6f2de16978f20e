# SPDX-License-Identifier: Apache-2.0
"""bool_mask_feature with masks of every kind."""

from __future__ import annotations

from typing import Any

import pytest

from tzgen.errors import DataError

from .feature_world import bags, one, parse

FIELDS = """expression: ["user:v", "user:m"] separator: "," num_buckets: 200 embedding_dim: 4
  value_dim: 0"""


@pytest.mark.parametrize("values", [["123,6,90,80", "5"], [[123, 6, 90, 80], [5]]])
@pytest.mark.parametrize(
    "masks",
    [
        ["true,false,TRUE,false", "false"],
        [[1, 0, 1, 0], [0]],
        [[True, False, True, False], [False]],
        ["1,0,1,0", "0"],
    ],
)
def test_masks(values: Any, masks: Any) -> None:
    text = one("bool_mask_feature", FIELDS + ' default_value: "7"')
    assert bags(parse(text, {"v": values, "m": masks}).ids["f"]) == [[123, 90], [7]]


def test_steps_of_a_sequence_are_left_out() -> None:
    columns = {"v": ["1;2;3", "4"], "m": ["1;0;1", "0"]}
    ids = parse(one("sequence_bool_mask_feature", FIELDS), columns).ids["f"]
    assert ids.values.tolist() == [1, 3]
    assert ids.seq_lengths is not None and ids.seq_lengths.tolist() == [2, 0]


def test_as_many_masks_as_values() -> None:
    with pytest.raises(DataError, match=r"row 101.*2 values and 1 masks"):
        parse(one("bool_mask_feature", FIELDS), {"v": [[1], [1, 2]], "m": [[1], [1]]})
