# SPDX-License-Identifier: Apache-2.0
"""Windows, histories and counters against loops that look at every pair of events."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from point_in_time import Ranges, cut_windows, evidence, last_time_before, sums_before

GAP, MOST, KEEP = 5, 3, 4

EVENTS = st.lists(
    st.tuples(
        st.integers(0, 2),  # user
        st.integers(0, 30),  # time, with many ties
        st.booleans(),  # candidate
        st.integers(0, 1),  # apart
    ),
    max_size=40,
)


def cut(rows: list[tuple[int, int, bool, int]]):
    user, time, candidate, apart = (np.array(column) for column in zip(*rows, strict=True))
    return cut_windows(
        user.astype(np.int64),
        time.astype(np.int64),
        candidate=candidate.astype(np.bool_),
        apart=apart.astype(np.int64),
        max_gap=GAP,
        max_candidates=MOST,
        max_history=KEEP,
    )


@given(EVENTS)
@settings(max_examples=300, deadline=None)
def test_windows_hold_every_candidate_once_and_histories_never_look_ahead(rows) -> None:
    if not rows:
        return
    rows = sorted(rows, key=lambda row: row[:2])
    windows = cut(rows)
    seen: list[int] = []
    for start, end, first, last in zip(
        windows.start, windows.end, windows.history_start, windows.history_end, strict=True
    ):
        inside = rows[start:end]
        seen += range(start, end)
        assert 1 <= len(inside) <= MOST
        assert len({(row[0], row[3]) for row in inside}) == 1 and all(row[2] for row in inside)
        assert all(b[1] - a[1] <= GAP for a, b in pairwise(inside))
        user, request = rows[start][:2]
        before = [i for i, row in enumerate(rows) if row[0] == user and row[1] < request]
        assert list(range(first, last)) == before[-KEEP:]
    assert seen == [i for i, row in enumerate(rows) if row[2]]


def test_windows_are_as_long_as_the_rules_allow() -> None:
    rows = [(0, t, True, 0) for t in (0, 1, 2, 3, 9, 14)] + [(1, 14, True, 0), (1, 15, True, 1)]
    windows = cut(rows)
    assert [*zip(windows.start, windows.end, strict=True)] == [
        (0, 3),
        (3, 4),
        (4, 6),
        (6, 7),
        (7, 8),
    ]


def test_a_rank_decides_where_times_are_coarse() -> None:
    five = np.zeros(5, np.int64)
    windows = cut_windows(
        five, five, candidate=np.ones(5, np.bool_), apart=five, max_gap=0, max_candidates=2,
        max_history=9, order=np.arange(5),
    )  # fmt: skip
    assert windows.history_end.tolist() == [0, 2, 4]


@pytest.mark.parametrize("user, time", [([0, 0], [2, 1]), ([1, 0], [1, 2])])
def test_unsorted_events_are_refused(user: list[int], time: list[int]) -> None:
    with pytest.raises(ValueError, match="not sorted"):
        cut([(u, t, True, 0) for u, t in zip(user, time, strict=True)])


def test_no_events_no_windows() -> None:
    none = np.zeros(0, np.int64)
    windows = cut_windows(
        none, none, candidate=np.zeros(0, np.bool_), apart=none, max_gap=1, max_candidates=1,
        max_history=1,
    )  # fmt: skip
    assert windows.start.size == 0


def test_ranges_become_lists_also_of_lists() -> None:
    ranges = Ranges(np.array([3, 1, 0]), np.array([5, 1, 2]))
    assert ranges.lists(pa.array([10, 11, 12, 13, 14])).to_pylist() == [[13, 14], [], [10, 11]]
    nested = pa.chunked_array([[["a"], []], [["b", "c"], None, ["d"]]])
    assert ranges.lists(nested).to_pylist() == [[None, ["d"]], [], [["a"], []]]


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 9), st.integers(1, 5))),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 10)), min_size=1),
)
@settings(max_examples=200, deadline=None)
def test_sums_count_strictly_earlier_events_of_equal_keys(events, asked) -> None:
    schema = {"a": pl.Int64, "b": pl.Int64, "time": pl.Int64, "x": pl.Float64}
    table = pl.DataFrame(events, schema=schema, orient="row")
    at = pl.DataFrame(asked, schema=["a", "b", "request_time"], orient="row")
    for keys in ([], ["a"], ["a", "b"]):
        found = sums_before(table, at, keys, ["x"])["x"].to_list()
        last = last_time_before(table, at, ["a", "b"]).to_list()
        for row, total, newest in zip(at.iter_rows(named=True), found, last, strict=True):
            earlier = [e for e in table.iter_rows(named=True) if e["time"] < row["request_time"]]
            assert total == sum(e["x"] for e in earlier if all(e[k] == row[k] for k in keys))
            mine = [e["time"] for e in earlier if (e["a"], e["b"]) == (row["a"], row["b"])]
            assert newest == (max(mine) if mine else None)


def test_evidence_is_a_shift_from_the_prior() -> None:
    prior = np.array([0.2, 0.2, 0.2])
    shift = evidence(np.array([0.0, 2.0, 10.0]), np.array([0.0, 10.0, 10.0]), prior, 5.0)
    assert shift[0] == 0 and abs(shift[1]) < 1e-12
    rate = (10 + 5 * 0.2) / 15
    assert shift[2] == pytest.approx(math.log(rate / (1 - rate)) - math.log(0.25))
