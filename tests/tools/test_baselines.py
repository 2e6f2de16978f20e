# SPDX-License-Identifier: Apache-2.0
"""Priors against loops, trees against noise, and the paired bootstrap against what it must find."""

from __future__ import annotations

import json
import math
from pathlib import Path

import baselines
import numpy as np
import paired_bootstrap
import polars as pl
import pytest
from baselines import Candidates, Priors
from prepared import read_candidates
from sklearn.metrics import roc_auc_score

from tzgen.errors import DataError, UserError

KEYS = ["user_id", "cand__video_id", "cand__time_ms"]


def test_weighted_auc_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(300) < 0.3).astype(np.float64)
    score = np.round(rng.normal(size=300) + label, 1)  # many ties
    weight = rng.integers(0, 4, 300).astype(np.float64)
    measured = paired_bootstrap.WeightedAUC(label, score)(weight)
    assert measured == pytest.approx(roc_auc_score(label, score, sample_weight=weight))
    assert paired_bootstrap.auc(label, score) == pytest.approx(roc_auc_score(label, score))
    assert math.isnan(paired_bootstrap.auc(np.ones(3), np.arange(3.0)))


def test_users_are_drawn_whole() -> None:
    users = np.array([5, 5, 9, 2, 9, 9])
    totals = []
    for weight in paired_bootstrap.user_weights(users, 200, seed=1):
        for user in (2, 5, 9):
            assert len(set(weight[users == user])) == 1
        totals.append(weight[[0, 2, 3]].sum())
    assert set(totals) == {3.0}
    again = [w.tolist() for w in paired_bootstrap.user_weights(users, 3, seed=1)]
    assert again == [w.tolist() for w in paired_bootstrap.user_weights(users, 3, seed=1)]


def logit(rate: float) -> float:
    return math.log(rate / (1 - rate))


def test_priors_count_what_came_before(prepared_kuairand: Path) -> None:
    data = Candidates(prepared_kuairand)
    priors = Priors(data, "is_click")
    strengths = {"item": 5.0, "user": 2.0, "context": 50.0}
    score = priors.score(strengths)
    rows = data.table.select(
        "cand__video_id",
        "user_id",
        "cand__tab",
        "time",
        "request_time",
        click=data.label("is_click"),
    ).rows()
    for place in range(0, len(rows), 37):
        before = [r for r in rows if r[3] < rows[place][4]]
        base = (sum(r[5] for r in before) + 1) / (len(before) + 4)
        wanted = logit(base)
        for column, strength in enumerate(strengths.values()):
            same = [r for r in before if r[column] == rows[place][column]]
            hits = sum(r[5] for r in same) + strength * base
            wanted += logit(hits / (len(same) + strength)) - logit(base)
        assert score[place] == pytest.approx(wanted)


@pytest.mark.parametrize("verb", ["priors", "gbdt"])
def test_predictions_are_written_for_the_split(
    prepared_kuairand: Path, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "MOST_TREES", 20)
    output = tmp_path / "new" / "scores.parquet"
    command = [verb, "--data", str(prepared_kuairand), "--evaluate", "test"]
    baselines.main([*command, "--output", str(output)])
    table = pl.read_parquet(output)
    truth = read_candidates(prepared_kuairand, "test", KEYS)
    assert table.select(KEYS).equals(truth)
    for task in ("is_click", "long_view", "is_like"):
        assert table[f"probs_{task}"].is_between(0, 1).all()
        assert table[f"probs_{task}"].n_unique() > 10


def test_features_of_trees_hold_no_label(prepared_kuairand: Path) -> None:
    matrix, names = baselines.feature_matrix(Candidates(prepared_kuairand))
    assert matrix.shape[1] == len(names) > 60
    assert not {n for n in names if "action" in n or "watchtime" in n or "time_ms" in n}


def test_regressions_have_priors_too(tmp_path: Path) -> None:
    import prepare_movielens
    from test_prepare_movielens import ratings, write_100k

    source = write_100k(tmp_path / "raw", ratings())
    rows, output = tmp_path / "rows", tmp_path / "scores.parquet"
    prepare_movielens.main(["--input", str(source), "--output", str(rows)])
    report = tmp_path / "report.json"
    where = ["--data", str(rows), "--output", str(output), "--report", str(report)]
    baselines.main(["priors", *where])
    metrics = json.loads(report.read_text())["metrics"]
    assert set(metrics) == {
        "auc_is_like",
        "mean_squared_error_rating",
        "mean_absolute_error_rating",
    }
    assert 0 < metrics["mean_absolute_error_rating"] < 2
    table = pl.read_parquet(output)
    assert table["y_rating"].is_between(1, 5).all() and "probs_is_like" in table.columns
    lines = list(paired_bootstrap.compare_files([output], rows, "valid", samples=50, seed=0))
    assert any(line.startswith("rating MSE") for line in lines)


@pytest.fixture
def scored(prepared_kuairand: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """The data, predictions that know a lot, and the same with noise, as lists for each request."""
    rng = np.random.default_rng(0)
    truth = read_candidates(prepared_kuairand, "test", [*KEYS, "cand__action", "request_time"])
    click = (truth["cand__action"] & 1).to_numpy()
    good = truth.with_columns(probs_is_click=pl.Series(3.0 * click + rng.normal(size=len(click))))
    good.select(*KEYS, "probs_is_click").write_parquet(tmp_path / "good.parquet")
    poor = good.with_columns(pl.col("probs_is_click") + pl.Series(rng.normal(size=len(click)) * 9))
    lists = poor.group_by("user_id", "request_time").agg(*KEYS[1:], "probs_is_click")
    (tmp_path / "poor").mkdir()
    lists.sample(fraction=1.0, shuffle=True, seed=3).write_parquet(
        tmp_path / "poor" / "part-0.parquet"
    )
    return prepared_kuairand, tmp_path / "good.parquet", tmp_path / "poor"


def test_the_better_file_is_found_with_its_margin(scored: tuple[Path, Path, Path]) -> None:
    data, good, poor = scored
    lines = list(paired_bootstrap.compare_files([poor, good], data, "test", samples=300, seed=0))
    assert len(lines) == 2 and "difference" not in lines[1]
    gap, low, high = (
        float(word.strip("[],")) for word in lines[0].split("difference to best")[1].split()
    )
    assert low < gap < high < 0
    again = list(paired_bootstrap.compare_files([good, good], data, "test", samples=20, seed=0))
    assert all("difference" not in line for line in again)


def test_predictions_of_other_rows_are_refused(
    scored: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    data, good, _ = scored
    table = pl.read_parquet(good)
    for name, wrong, match in (
        ("short", table.head(5), "without one"),
        ("twice", pl.concat([table, table.head(1)]), "one score for each"),
        ("other", table.with_columns(pl.col("cand__time_ms") + 1), "without one"),
        ("keyless", table.drop("user_id"), "reserved_columns"),
    ):
        wrong.write_parquet(tmp_path / f"{name}.parquet")
        with pytest.raises(DataError, match=match):
            list(
                paired_bootstrap.compare_files(
                    [tmp_path / f"{name}.parquet"], data, "test", samples=2, seed=0
                )
            )
    with pytest.raises(DataError, match="no parquet file"):
        list(paired_bootstrap.compare_files([tmp_path / "no"], data, "test", samples=2, seed=0))


def test_bad_arguments_are_named(prepared_kuairand: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prepare_movielens"):
        baselines.main(["priors", "--data", str(tmp_path)])
    with pytest.raises(UserError, match=r"\.parquet"):
        baselines.main(["priors", "--data", str(prepared_kuairand), "--output", "x.csv"])
    with pytest.raises(DataError, match="split nothing"):
        read_candidates(prepared_kuairand, "nothing")
    with pytest.raises(DataError, match="cand__no"):
        read_candidates(prepared_kuairand, "test", ["cand__no"])
