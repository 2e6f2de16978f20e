# SPDX-License-Identifier: Apache-2.0
"""The order of an epoch: a permutation, within windows, repeatable, computable from anywhere."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tzgen.data.order import RowOrder, permutation

SHAPES = [[1], [5], [3, 0, 4], [16] * 7 + [3], [1, 100, 1, 1, 50], [0, 0, 2]]


def order(group_rows: list[int], window: int | None = 2, seed: int = 1, epoch: int = 0) -> RowOrder:
    counts = np.array(group_rows, dtype=np.int64)
    return RowOrder(counts, key="data", seed=seed, epoch=epoch, shuffle_window=window)


def flat(group_rows: list[int], located: tuple[np.ndarray, np.ndarray]) -> list[int]:
    starts = np.concatenate([[0], np.cumsum(group_rows)])
    return (starts[located[0]] + located[1]).tolist()


@pytest.mark.parametrize("group_rows", SHAPES, ids=str)
@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_every_row_once(group_rows: list[int], window: int) -> None:
    rows = flat(group_rows, order(group_rows, window).rows(0, sum(group_rows)))
    assert sorted(rows) == list(range(sum(group_rows)))


@pytest.mark.parametrize("group_rows", SHAPES, ids=str)
def test_unshuffled_is_file_order(group_rows: list[int]) -> None:
    rows = flat(group_rows, order(group_rows, None).rows(0, sum(group_rows)))
    assert rows == list(range(sum(group_rows)))


def test_any_part_equals_that_part_of_the_whole() -> None:
    group_rows = [16] * 7 + [3]
    whole = flat(group_rows, order(group_rows).rows(0, 115))
    for start, stop in [(0, 1), (0, 32), (31, 33), (5, 90), (114, 115), (115, 115)]:
        assert flat(group_rows, order(group_rows).rows(start, stop)) == whole[start:stop]


def test_a_batch_is_the_same_rows_laid_out_by_row_group() -> None:
    group_rows = [16] * 7 + [3]
    one = order(group_rows, 3)
    for start, stop in [(0, 20), (40, 60), (100, 115)]:
        rows, batch = one.rows(start, stop), one.batch(start, stop)
        assert sorted(flat(group_rows, rows)) == sorted(flat(group_rows, batch))
        groups = batch[0].tolist()
        assert len(set(groups)) == 1 + sum(a != b for a, b in pairwise(groups))
        for group in set(groups):
            inside = batch[1][batch[0] == group]
            assert (np.diff(inside) > 0).all()


def test_rows_mix_inside_a_window_and_nowhere_else() -> None:
    group_rows = [10] * 12
    groups, _ = order(group_rows, 3).rows(0, 120)
    windows = [set(groups[i : i + 30].tolist()) for i in range(0, 120, 30)]
    assert all(len(window) == 3 for window in windows)
    assert len(set.union(*windows)) == 12
    assert len(set(groups[:10].tolist())) > 1, "the first rows come from one row group: not mixed"
    assert np.concatenate([sorted(w) for w in windows]).tolist() != list(range(12))


def test_seed_and_epoch_and_data_decide() -> None:
    group_rows = [50] * 4
    base = flat(group_rows, order(group_rows).rows(0, 200))
    assert flat(group_rows, order(group_rows).rows(0, 200)) == base
    assert flat(group_rows, order(group_rows, seed=2).rows(0, 200)) != base
    assert flat(group_rows, order(group_rows, epoch=1).rows(0, 200)) != base
    other = RowOrder(np.array(group_rows), key="other", seed=1, epoch=0, shuffle_window=2)
    assert flat(group_rows, other.rows(0, 200)) != base


def test_the_order_is_pinned() -> None:
    """These numbers must never change: a resumed run would silently repeat and skip rows."""
    assert permutation(10, "pinned").tolist() == PINNED
    assert permutation(0, "x").tolist() == []
    assert permutation(1, "x").tolist() == [0]


PINNED = [9, 2, 4, 7, 0, 1, 5, 3, 6, 8]


def test_permutations_are_even() -> None:
    """Each value at each place about equally often: chi-square over 36 cells, 3,000 draws."""
    counts = np.zeros((6, 6))
    for i in range(3000):
        counts[np.arange(6), permutation(6, f"k{i}")] += 1
    chi2 = ((counts - 500) ** 2 / 500).sum()
    assert chi2 < 52.6  # 25 degrees of freedom, p = 0.001


def test_a_window_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="shuffle_window is 0"):
        order([1], 0)
