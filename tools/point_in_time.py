# SPDX-License-Identifier: Apache-2.0
"""Event logs to point-in-time rows: windows, histories and counters that never look ahead.

A row is one user and one request window. Its candidates are the user's events of the window, its
request time is the time of the first of them, and whatever describes the request (history,
counters) is made of events *strictly before* the request time: an event in the same instant is not
known yet. Everything works on arrays sorted by (user, order); there is no loop over rows or users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Windows:
    """Row w has the events [start, end) as candidates and [history_start, history_end) before them.

    All int64 [W], positions in the sorted events.
    """

    start: Ints
    end: Ints
    history_start: Ints
    history_end: Ints


def cut_windows(
    user: Ints,
    time: Ints,
    *,
    candidate: NDArray[np.bool_],
    apart: Ints,
    max_gap: int,
    max_candidates: int,
    max_history: int,
    order: Ints | None = None,
) -> Windows:
    """Cut each user's candidate events into request windows and find the history of each.

    Args:
        user, time: int64 [E], sorted by (user, order); time must not fall within a user.
        candidate: bool [E]; other events are history only.
        apart: int64 [E]; events of different values never share a window (days, splits).
        max_gap: a longer pause than this, in units of time, starts a new window.
        order: int64 [E], what "before" is decided on; default time. A rank, where times are coarse.
    """
    order = time if order is None else order
    if len(user) == 0:
        empty = np.zeros(0, np.int64)
        return Windows(empty, empty, empty, empty)
    same_user = _equal_to_previous(user)
    if np.any(same_user[1:] & ((np.diff(order) < 0) | (np.diff(time) < 0))) or np.any(
        np.diff(user) < 0
    ):
        raise ValueError("events are not sorted by user and time")
    position = np.arange(len(user), dtype=np.int64)
    pause = np.concatenate([[0], np.diff(time)])
    joined = same_user & _equal_to_previous(apart) & _equal_to_previous(candidate)
    first = ~(joined & (pause <= max_gap))
    inside = position - _latest(position, first)
    first |= inside % max_candidates == 0
    bounds = np.append(np.flatnonzero(first), len(user))
    kept = candidate[bounds[:-1]]
    start, end = bounds[:-1][kept], bounds[1:][kept]
    # The history ends where the run of events in the same instant as the first candidate begins.
    history_end = _latest(position, ~(same_user & _equal_to_previous(order)))[start]
    user_start = _latest(position, ~same_user)[start]
    return Windows(start, end, np.maximum(user_start, history_end - max_history), history_end)


def _equal_to_previous(values: NDArray[np.generic]) -> NDArray[np.bool_]:
    return np.concatenate([[False], values[1:] == values[:-1]])


def _latest(position: Ints, flag: NDArray[np.bool_]) -> Ints:
    """For each position the last one at or before it where the flag holds."""
    return np.maximum.accumulate(np.where(flag, position, 0))


class Ranges:
    """Ranges of a table's rows, gathered into one list per range."""

    def __init__(self, start: Ints, end: Ints) -> None:
        lengths = end - start
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        if offsets[-1] > np.iinfo(np.int32).max:
            raise ValueError("more than 2^31 list elements in one split: write it in parts")
        self.index: Ints = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], lengths)
        self._offsets = pa.array(offsets.astype(np.int32))

    def lists(self, column: pa.Array | pa.ChunkedArray) -> pa.ListArray:
        """list<T> [ranges] of a column's elements; T may itself be a list."""
        values = column.take(pa.array(self.index))
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        return pa.ListArray.from_arrays(self._offsets, values)


def sums_before(
    events: pl.DataFrame, at: pl.DataFrame, keys: Sequence[str], values: Sequence[str]
) -> pl.DataFrame:
    """Sums of `values` over the events with equal `keys` and time < request_time.

    Args:
        events: columns keys, values and `time`, in any order.
        at: columns keys and `request_time`.

    Returns:
        Columns `values` in the order of `at`; 0 where there is no such event. Without keys all
        events count.
    """
    keys, values = list(keys), list(values)
    summed = events.group_by([*keys, "time"]).agg(pl.col(values).sum()).sort("time")
    running = pl.col(values).cum_sum()
    summed = summed.with_columns(running.over(keys) if keys else running)
    asked = at.select(*keys, "request_time").with_row_index("__row").sort("request_time")
    found = asked.join_asof(
        summed,
        left_on="request_time",
        right_on="time",
        by=keys or None,
        strategy="backward",
        allow_exact_matches=False,
        check_sortedness=False,
    )
    return found.sort("__row").select(pl.col(values).fill_null(0))


def last_time_before(events: pl.DataFrame, at: pl.DataFrame, keys: Sequence[str]) -> pl.Series:
    """Time of the newest event with equal keys and time < request_time; null if none."""
    times = events.select(*keys, "time", last="time").unique().sort("time")
    asked = at.select(*keys, "request_time").with_row_index("__row").sort("request_time")
    found = asked.join_asof(
        times,
        left_on="request_time",
        right_on="time",
        by=list(keys),
        strategy="backward",
        allow_exact_matches=False,
        check_sortedness=False,
    )
    return found.sort("__row")["last"]


def log_odds(rate: Floats) -> Floats:
    """log(p / (1 - p))."""
    return np.log(rate) - np.log1p(-rate)


def evidence(hits: Floats, trials: Floats, prior: Floats, strength: float) -> Floats:
    """How far the smoothed rate lies from the prior, in log-odds; 0 where nothing is known.

    `strength` is the number of trials that the prior is worth.
    """
    return log_odds((hits + strength * prior) / (trials + strength)) - log_odds(prior)
