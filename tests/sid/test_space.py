# SPDX-License-Identifier: Apache-2.0
"""Keys that sort as the codes do, and what a wrong code is told."""

from __future__ import annotations

import numpy as np
import pytest

from tzgen.errors import UserError
from tzgen.sid.space import SidSpace, group_ranks, group_sizes


@pytest.mark.parametrize("codebook", [(4,), (3, 5, 2), (2**21, 2**21, 2**21), (2**40, 2**40)])
def test_keys_are_equal_and_ordered_as_the_codes(codebook: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, min(size, 3), 200) for size in codebook], axis=1)
    codes[:7] = np.array(codebook) - 1  # the largest ID of all
    keys = SidSpace(codebook).keys(codes)
    order = np.argsort(keys, kind="stable")
    rows = [tuple(row) for row in codes[order]]
    assert rows == sorted(map(tuple, codes))
    assert len(set(keys.tolist())) == len(set(rows))


def test_offsets_make_one_vocabulary() -> None:
    assert SidSpace((3, 5, 2)).offsets.tolist() == [0, 3, 8]


def test_a_wrong_code_is_named() -> None:
    space = SidSpace((3, 5))
    space.check(np.array([[2, 4]]))
    with pytest.raises(UserError, match=r"item B7: code 5 at level 1; expected 0 to 4"):
        space.check(np.array([[2, 4], [0, 5]]), np.array(["A1", "B7"]))
    with pytest.raises(UserError, match=r"shape \(2, 3\)"):
        space.check(np.zeros((2, 3), np.int64))


def test_ranks_and_sizes_are_those_of_a_dictionary() -> None:
    rng = np.random.default_rng(1)
    for n in (0, 1, 50):
        keys = rng.integers(0, 8, n)
        seen: dict[int, int] = {}
        expected = []
        for key in keys.tolist():
            expected.append(seen.get(key, 0))
            seen[key] = seen.get(key, 0) + 1
        assert group_ranks(keys).tolist() == expected
        assert group_sizes(keys).tolist() == [seen[key] for key in keys.tolist()]
