# SPDX-License-Identifier: Apache-2.0
"""The tools as modules, as they see each other when they run; small data sets in their layouts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

DAY_MS = 86_400_000
FIRST_MIDNIGHT_MS = 1_650_816_000_000  # 25 April 2022 in UTC+8


def kuairand_log(
    seed: int = 0, *, users: int = 12, videos: int = 25, events: int = 40
) -> pl.DataFrame:
    """A log of 14 days with bursts, equal times, and one repeated line."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        time = FIRST_MIDNIGHT_MS + rng.integers(0, DAY_MS)
        for _ in range(events):
            pause = rng.choice([0, 5_000, 120_000, 3_600_000, 140_000_000])
            time = min(int(time + pause), FIRST_MIDNIGHT_MS + 14 * DAY_MS - 1)
            click = int(rng.random() < 0.5)
            day = 20220425 + (time - FIRST_MIDNIGHT_MS) // DAY_MS
            rows.append(
                {
                    "user_id": user,
                    "video_id": int(rng.integers(0, videos)),
                    "date": day if day <= 20220430 else day + 70,
                    "time_ms": time,
                    "is_click": click,
                    "long_view": click & int(rng.random() < 0.6),
                    "is_like": click & int(rng.random() < 0.2),
                    "tab": int(rng.integers(0, 3)),
                    "play_time_ms": int(rng.integers(0, 90_000)),
                }
            )
    log = pl.DataFrame(rows)
    none = ("is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter")
    log = log.with_columns(pl.lit(0).alias(name) for name in none)
    log = log.unique(["user_id", "video_id", "time_ms"], keep="first", maintain_order=True)
    return pl.concat([log, log.head(1)]).sort("time_ms", maintain_order=True)


def write_kuairand(folder: Path, log: pl.DataFrame) -> Path:
    """The folder of the data set: two logs, what came before them, and features."""
    folder.mkdir(parents=True, exist_ok=True)
    early = pl.col("date") <= 20220430
    log.filter(early).write_parquet(folder / "log_standard_a.parquet")
    log.filter(~early).write_parquet(folder / "log_standard_b.parquet")
    rng = np.random.default_rng(7)
    videos = np.arange(int(log["video_id"].max()) + 1)  # type: ignore[arg-type]
    pl.DataFrame(
        {
            "video_id": videos,
            "author_id": videos // 3,
            "video_type": ["NORMAL", "AD"] * (len(videos) // 2) + ["NORMAL"] * (len(videos) % 2),
            "upload_dt": ["2022-04-10"] * len(videos),
            "upload_type": [None, *["Web"] * (len(videos) - 1)],
            "video_duration": [None, *rng.uniform(5e3, 2e5, len(videos) - 1)],
            "music_id": videos + 9_000_000_000,
            "tag": [None, "3,4", *[str(v % 5) for v in videos[2:]]],
        }
    ).write_csv(folder / "video_features_basic_pure.csv")
    users = log["user_id"].unique().sort()
    text = ("user_active_degree", *(f"{n}_range" for n in ("follow_user_num", "fans_user_num")))
    text = (*text, "friend_user_num_range", "register_days_range")
    columns: dict[str, object] = {"user_id": users, **{n: ["a,b"] * len(users) for n in text}}
    for name in ("is_lowactive_period", "is_live_streamer", "is_video_author"):
        columns[name] = [0] * len(users)
    columns |= {f"onehot_feat{i}": [float(i)] * len(users) for i in range(18)}
    pl.DataFrame(columns).write_csv(folder / "user_features_pure.csv")
    # User 1's summary ends in the middle of his log: it must not be seen before.
    last = [FIRST_MIDNIGHT_MS - 1000, FIRST_MIDNIGHT_MS + 5 * DAY_MS]
    pl.DataFrame(
        {
            "user_id": [0, 1],
            "history_len": [3, 2],
            "last_time_ms": last,
            "watch_seq": [[1, 2, 1], [3, 4]],
            "like_seq": [[2], []],
            "long_watch_seq": [[1, 1], [4]],
        }
    ).write_parquet(folder / "user_history_x.parquet")
    return folder


@pytest.fixture(scope="session")
def kuairand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic data set's folder."""
    return write_kuairand(tmp_path_factory.mktemp("kuairand") / "raw", kuairand_log())


@pytest.fixture(scope="session")
def prepared_kuairand(kuairand: Path) -> Path:
    """Its rows."""
    import prepare_kuairand

    output = kuairand.parent / "rows"
    prepare_kuairand.main(["--input", str(kuairand), "--output", str(output)])
    return output
