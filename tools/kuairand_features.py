# SPDX-License-Identifier: Apache-2.0
"""Columns of KuaiRand rows: who asks, what he saw, what is offered and what was known of it.

Counters are as of the request time (point_in_time.sums_before). Each is four float32:
[log1p(events), log-odds of click, of long view, of like], the log-odds as a shift from those of all
events so far, smoothed with STRENGTH pseudo-events, so that 0 says "nothing known".
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from point_in_time import evidence, last_time_before, sums_before

TEXT_CONTEXT = (
    "user_active_degree",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
)
CONTEXT = (
    *TEXT_CONTEXT,
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    *(f"onehot_feat{i}" for i in range(18)),
)

CLICK, LIKE, LONG_VIEW, BEFORE_LOG = 1, 2, 64, 256
UTC_OFFSET_S = 8 * 3600  # the log's users live in one time zone
DAY_MS = 86_400_000
UNKNOWN_HOURS = 1000.0

# Counter name -> keys, pseudo-events that the mean of all events is worth.
COUNTERS: dict[str, tuple[tuple[str, ...], float]] = {
    "video_stats": (("video_id",), 20.0),
    "author_stats": (("author_id",), 20.0),
    "tag_stats": (("tag",), 50.0),
    "tab_stats": (("tab",), 50.0),
    "video_tab_stats": (("video_id", "tab"), 20.0),
    "user_stats": (("user_id",), 5.0),
    "user_tab_stats": (("user_id", "tab"), 5.0),
    "user_author_stats": (("user_id", "author_id"), 3.0),
    "user_tag_stats": (("user_id", "tag"), 5.0),
}
# What trees may read: no ids of many values, no label, no time of the event itself.
FEATURES = (
    *CONTEXT,
    "hour",
    "weekday",
    "cand__tag",
    "cand__tab",
    "cand__duration",
    "cand__video_type",
    "cand__upload_type",
    "cand__video_age_days",
    *(f"cand__{name}" for name in COUNTERS),
    "cand__user_recency",
)
SUMS = ("shown", "logged", "click", "long_view", "like")
STATS_WIDTH = 4


def context_columns(request: pl.DataFrame, users: pl.DataFrame) -> dict[str, pa.Array]:
    """Row columns: user_id, date, request_time (s), hour, weekday (Monday 0) and user features."""
    local = pl.col("request_ms") // 1000 + UTC_OFFSET_S
    numbers = [name for name in CONTEXT if name not in TEXT_CONTEXT]
    known = users.select(
        pl.col("user_id").cast(pl.Int64),
        pl.col(TEXT_CONTEXT).cast(pl.String),
        pl.col(numbers).cast(pl.Int64),
    )
    rows = request.select(
        "user_id",
        "date",
        request_time=pl.col("request_ms") // 1000,
        hour=local // 3600 % 24,
        weekday=(local // 86_400 + 3) % 7,  # 1 January 1970 was a Thursday
    ).join(known, on="user_id", how="left", maintain_order="left")
    return {name: rows[name].to_arrow() for name in rows.columns}


def history_columns(events: pl.DataFrame) -> dict[str, pa.Array]:
    """What a history tells of each event, one element per event."""
    return {
        "video_id": events["video_id"].to_arrow(),
        "author_id": events["author_id"].to_arrow(),
        "tag": _tags(events),
        "tab": events["tab"].to_arrow(),
        "duration": events["duration"].to_arrow(),
        "action": events["action"].to_arrow(),
        "watchtime": events["watchtime"].to_arrow(),
        "timestamp": (events["time"] // 1000).to_arrow(),
    }


def candidate_columns(events: pl.DataFrame, chosen: pl.DataFrame) -> dict[str, pa.Array]:
    """What is known of each candidate at its request, and its labels; one element per candidate.

    Args:
        events: all events, sorted by user and time.
        chosen: the candidates in row order, with `request_time` in ms.
    """
    columns: dict[str, pa.Array] = {
        "video_id": chosen["video_id"].to_arrow(),
        "author_id": chosen["author_id"].to_arrow(),
        "tag": _tags(chosen),
        "tab": chosen["tab"].to_arrow(),
        "duration": chosen["duration"].to_arrow(),
        "music_id": chosen["music_id"].to_arrow(),
        "video_type": chosen["video_type"].cast(pl.String).to_arrow(),
        "upload_type": chosen["upload_type"].cast(pl.String).to_arrow(),
        "video_age_days": (chosen["request_time"] / DAY_MS - chosen["uploaded"])
        .cast(pl.Float32)
        .to_arrow(),
    }
    columns |= counter_columns(events, chosen)
    columns["action"] = chosen["action"].to_arrow()
    columns["watchtime"] = chosen["watchtime"].to_arrow()
    columns["timestamp"] = (chosen["request_time"] // 1000).to_arrow()
    columns["time_ms"] = chosen["time"].to_arrow()
    return columns


def counter_columns(events: pl.DataFrame, chosen: pl.DataFrame) -> dict[str, pa.Array]:
    """Every counter of COUNTERS, and `user_recency`: [log1p(hours since the user's last event),
    log1p(events in the last 24 hours)]."""
    logged = (pl.col("action") & BEFORE_LOG) == 0
    counted = events.with_columns(
        shown=pl.lit(1.0),
        logged=logged.cast(pl.Float64),  # clicks are known of these alone
        click=((pl.col("action") & CLICK) != 0).cast(pl.Float64),
        long_view=((pl.col("action") & LONG_VIEW) != 0).cast(pl.Float64),
        like=((pl.col("action") & LIKE) != 0).cast(pl.Float64),
    )
    everything = sums_before(counted, chosen, [], SUMS)
    priors = {
        "click": (everything["click"] + 1) / (everything["logged"] + 4),
        "long_view": (everything["long_view"] + 1) / (everything["shown"] + 4),
        "like": (everything["like"] + 1) / (everything["shown"] + 50),
    }
    columns = {}
    for name, (keys, strength) in COUNTERS.items():
        source = counted.filter(logged) if "tab" in keys else counted
        sums = sums_before(source, chosen, keys, SUMS)
        stats = [np.log1p(sums["shown"].to_numpy())]
        for hit, prior in priors.items():
            trials = sums["logged" if hit == "click" else "shown"].to_numpy()
            stats.append(evidence(sums[hit].to_numpy(), trials, prior.to_numpy(), strength))
        columns[name] = _vectors(stats)
    columns["user_recency"] = _vectors(_recency(counted, chosen))
    return columns


def _recency(counted: pl.DataFrame, chosen: pl.DataFrame) -> list[NDArray[np.float64]]:
    last = last_time_before(counted, chosen, ["user_id"])
    hours = ((chosen["request_time"] - last) / 3_600_000).fill_null(UNKNOWN_HOURS)
    now = sums_before(counted, chosen, ["user_id"], ["shown"])["shown"]
    # Events before (request - 24 h); those in that very millisecond count as of the last day.
    yesterday = chosen.with_columns(pl.col("request_time") - DAY_MS)
    past = sums_before(counted, yesterday, ["user_id"], ["shown"])["shown"]
    return [np.log1p(hours.to_numpy()), np.log1p((now - past).to_numpy())]


def _tags(frame: pl.DataFrame) -> pa.Array:
    """list<int64> per event; int32 offsets, which every reader knows."""
    return frame["tags"].to_arrow().cast(pa.list_(pa.int64()))


def _vectors(parts: list[NDArray[np.float64]]) -> pa.Array:
    """[N] arrays side by side as list<float32>[len(parts)] per element."""
    width = len(parts)
    values = np.stack(parts, axis=1).astype(np.float32).reshape(-1)
    offsets = np.arange(0, values.size + 1, width, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
