# SPDX-License-Identifier: Apache-2.0
"""Moves on bags against loops over lists."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tzgen.features import bags as moves
from tzgen.features.bags import BadValue, Bags


def flat(lists: list[list[int]]) -> Bags:
    return Bags(
        np.array([x for one in lists for x in one], np.int64), np.array(list(map(len, lists)))
    )


def test_ranges() -> None:
    starts, lengths = np.array([5, 0, 9, 2]), np.array([2, 0, 1, 3])
    assert moves.ranges(starts, lengths).tolist() == [5, 6, 9, 2, 3, 4]
    assert moves.within(lengths).tolist() == [0, 1, 0, 0, 1, 2]
    assert moves.ranges(starts[:0], lengths[:0]).size == 0


def test_fill_puts_the_default_into_empty_bags() -> None:
    filled = moves.fill(flat([[], [1, 2], [], [3]]), np.array([8, 9]))
    assert filled.values.tolist() == [8, 9, 1, 2, 8, 9, 3]
    assert filled.lengths is not None and filled.lengths.tolist() == [2, 2, 2, 1]
    weighted = Bags(np.array([4]), np.array([0, 1]), weights=np.array([0.5], np.float32))
    filled = moves.fill(weighted, np.array([7]))
    assert filled.weights is not None and filled.weights.tolist() == [1.0, 0.5]
    assert filled.lengths is None  # every bag has one value now


def test_fill_of_texts_and_without_default() -> None:
    words = Bags(pa.array(["a"]), np.array([0, 1]))
    assert moves.fill(words, pa.array(["z"])).values.to_pylist() == ["z", "a"]
    kept = moves.fill(words, np.empty(0, np.int64))
    assert kept.lengths is not None and kept.lengths.tolist() == [0, 1]


def test_head_keeps_the_first_values() -> None:
    cut = moves.head(flat([[1, 2, 3], [], [4]]), 2)
    assert cut.values.tolist() == [1, 2, 4]
    assert cut.lengths is not None and cut.lengths.tolist() == [2, 0, 1]


def test_align_repeats_rows_for_their_steps() -> None:
    sequence = Bags(np.arange(4), None, np.array([3, 0, 1]))
    rows = flat([[10, 11], [20], []])
    repeated = moves.align([rows, sequence])[0]
    assert repeated.values.tolist() == [10, 11] * 3
    assert repeated.lengths is not None and repeated.lengths.tolist() == [2, 2, 2, 0]
    other = Bags(np.arange(4), None, np.array([2, 1, 1]))
    with pytest.raises(BadValue, match="3 and 2 steps") as caught:
        moves.align([sequence, other])
    assert caught.value.row == 0


def test_rows_of_elements() -> None:
    bags = Bags(np.arange(5), np.array([2, 0, 1, 2]), np.array([3, 0, 1]))
    assert [bags.row_of(i) for i in range(5)] == [0, 0, 0, 2, 2]
