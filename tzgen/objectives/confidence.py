# SPDX-License-Identifier: Apache-2.0
"""Bootstrap over users: rows of one user are alike, so that users are drawn, with all their rows.

U users, S bootstrap samples. Metrics are prepared once (sorted, or summed by user); a bootstrap
sample only changes how often each user counts. Source: Efron and Tibshirani 1993, percentiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tzgen.errors import UserError
from tzgen.objectives.metric_base import F64, I64, Metric
from tzgen.objectives.ranking import SortedScores


def resamples(num_users: int, samples: int, seed: int) -> Iterator[F64]:
    """`samples` times how often each of `num_users` users is drawn, [U] summing to U."""
    generator = np.random.default_rng(seed)
    for _ in range(samples):
        drawn = generator.integers(0, num_users, num_users)
        yield np.bincount(drawn, minlength=num_users).astype(np.float64)


def intervals(
    metrics: Mapping[str, Metric], *, samples: int, seed: int, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Name -> (low, high) of every metric that kept its users, all from the same draws of users.

    A metric that is undefined in most draws, or has no user to draw, is left out.
    """
    users = np.unique(
        np.concatenate([np.zeros(0, np.int64), *(m.users() for m in metrics.values())])
    )
    if not len(users) or samples < 1:
        return {}

    def index(ids: I64) -> I64:
        return np.searchsorted(users, ids).astype(np.int64)

    found = {name: metric.resampler(index) for name, metric in metrics.items()}
    resamplers = {name: value for name, value in found.items() if value is not None}
    drawn: dict[str, list[float]] = {name: [] for name in resamplers}
    for counts in resamples(len(users), samples, seed):
        for name, value in resamplers.items():
            drawn[name].append(value(counts))
    return {
        name: bounds(np.array(values), level)
        for name, values in drawn.items()
        if np.isnan(values).mean() < 0.5
    }


def bounds(values: F64, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of the values, NaN left out.

    >>> bounds(np.array([0.0, 4.0, 1.0, 3.0, 2.0, np.nan]), level=0.5)
    (1.0, 3.0)
    """
    tail = 50.0 * (1.0 - level)
    low, high = np.nanpercentile(values, [tail, 100.0 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedBootstrap:
    """AUC of two models on the same rows, and their difference b - a with its 95 % interval.

    `share_not_better`: the share of draws in which b does not beat a.
    """

    auc_a: float
    auc_b: float
    difference: float
    low: float
    high: float
    share_not_better: float

    @property
    def is_different(self) -> bool:
        """The interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    users: ArrayLike,
    *,
    samples: int = 1000,
    seed: int = 0,
) -> PairedBootstrap:
    """Compare two models' scores of the same rows by AUC, [N] each; users, int or str, are drawn.

    Both models see the same draws, so that what a draw does to both cancels in the difference.
    """
    columns = [np.asarray(column) for column in (labels, scores_a, scores_b, users)]
    sizes = [len(column) for column in columns]
    if len(set(sizes)) != 1 or not sizes[0]:
        raise UserError(
            f"paired_bootstrap: columns of {sizes} rows; expected equal lengths above 0"
        )
    hits = columns[0]
    if samples < 1 or not (hits > 0).any() or (hits > 0).all():
        raise UserError("paired_bootstrap: needs samples >= 1 and labels of both classes")
    distinct, of = np.unique(columns[3], return_inverse=True)
    first, second = SortedScores(columns[1], hits), SortedScores(columns[2], hits)
    drawn: NDArray[np.float64] = np.array(
        [
            second.auc(counts[of]) - first.auc(counts[of])
            for counts in resamples(len(distinct), samples, seed)
        ]
    )
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        raise UserError("paired_bootstrap: no draw has both classes; there are too few users")
    low, high = bounds(drawn)
    a, b = first.auc(), second.auc()
    return PairedBootstrap(a, b, b - a, low, high, float((drawn <= 0).mean()))
