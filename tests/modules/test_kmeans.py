# SPDX-License-Identifier: Apache-2.0
"""k-means against scikit-learn and brute force; balance, ranks and what cannot be fitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.cluster import KMeans
from torch import Tensor

from tzgen.modules import kmeans as kmeans_module
from tzgen.modules.kmeans import (
    KMeansOptions,
    balanced_nearest,
    kmeans,
    nearest,
    residual_kmeans,
)


def blobs(seed: int = 0, *, points: int = 400, centres: int = 6, dim: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    middle = 4.0 * torch.randn(centres, dim, generator=generator)
    noise = torch.randn(points, dim, generator=generator)
    return middle[torch.randint(centres, (points,), generator=generator)] + noise


def test_nearest_is_brute_force_and_ties_go_to_the_lowest() -> None:
    x, c = blobs(), blobs(1)[:9]
    index, distance = nearest(x, c)
    full = (x[:, None] - c[None]).square().sum(-1)
    assert torch.equal(index, full.argmin(1))
    torch.testing.assert_close(distance, full.min(1).values, rtol=1e-4, atol=1e-4)
    assert nearest(x, torch.stack([c[0], c[0]]))[0].max() == 0
    assert nearest(x[:0], c)[0].shape == (0,)


def test_inertia_is_as_good_as_scikit_learns() -> None:
    x = blobs(points=1000, centres=8)
    ours = kmeans(x, 8, KMeansOptions(nredo=5))
    theirs = KMeans(8, n_init=5, random_state=0).fit(x.numpy())
    assert ours.inertia <= theirs.inertia_ / len(x) * 1.01
    assert ours.inertia == pytest.approx(float(nearest(x, ours.centroids)[1].mean()), rel=1e-5)


def test_the_same_seed_gives_the_same_centroids_and_another_does_not() -> None:
    x = blobs(centres=40)
    first, again = (kmeans(x, 16, KMeansOptions(seed=3, niter=4)).centroids for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, kmeans(x, 16, KMeansOptions(seed=4, niter=4)).centroids)


def test_spherical_centroids_have_length_one() -> None:
    fit = kmeans(blobs(), 7, KMeansOptions(spherical=True))
    torch.testing.assert_close(fit.centroids.norm(dim=1), torch.ones(7))


@pytest.mark.parametrize(("points", "k"), [(100, 7), (10, 10), (9, 4), (3, 5)])
def test_balanced_gives_nobody_more_than_its_share(points: int, k: int) -> None:
    x, c = blobs(points=points), blobs(2)[:k]
    codes = balanced_nearest(x, c)
    assert codes.min() >= 0
    assert torch.bincount(codes, minlength=k).max() <= -(-points // k)


def test_a_balanced_fit_spreads_the_codes() -> None:
    x = torch.cat([blobs(points=300, centres=1), blobs(5, points=20, centres=4)])
    spread = {}
    for balanced in (False, True):
        fit = kmeans(x, 8, KMeansOptions(balanced=balanced))
        spread[balanced] = torch.bincount(nearest(x, fit.centroids)[0], minlength=8).max()
    assert spread[True] < spread[False]


def test_dead_centroids_move_to_far_points() -> None:
    """Two far clumps and a start in only one of them cannot happen; copies can: many points are
    equal, so that centroids lose all of theirs."""
    x = torch.cat([torch.zeros(50, 2), torch.arange(20.0).view(10, 2)])
    fit = kmeans(x, 11, KMeansOptions(niter=10))
    assert torch.bincount(nearest(x, fit.centroids)[0], minlength=11).min() > 0
    assert fit.inertia == pytest.approx(0.0, abs=1e-6)


def test_residual_levels_reduce_what_is_left() -> None:
    x = blobs(centres=50)
    fits, codes = residual_kmeans(x, (8, 4, 16), KMeansOptions())
    assert codes.shape == (len(x), 3)
    assert (codes.amax(0) < torch.tensor([8, 4, 16])).all()
    left = x.clone()
    errors = [float(left.square().sum(1).mean())]
    for level, fit in enumerate(fits):
        assert torch.equal(nearest(left, fit.centroids)[0], codes[:, level])
        left = left - fit.centroids[codes[:, level]]
        errors.append(float(left.square().sum(1).mean()))
    assert errors == sorted(errors, reverse=True)


def test_more_centroids_than_start_rows_are_drawn_from_more() -> None:
    x = blobs(points=60)
    fit = kmeans(x, 40, KMeansOptions(niter=3, start_rows=10))
    assert torch.unique(fit.centroids, dim=0).size(0) == 40


def test_balance_in_blocks_of_centroids_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, c = blobs(points=200), blobs(3)[:30]
    whole = balanced_nearest(x, c)
    real, largest = torch.cdist, []

    def cdist(a: Tensor, b: Tensor) -> Tensor:
        largest.append(a.size(0) * b.size(0))
        return real(a, b)

    monkeypatch.setattr(torch, "cdist", cdist)
    monkeypatch.setattr(kmeans_module, "BLOCK_NUMBERS", 1400)
    assert torch.equal(balanced_nearest(x, c), whole)
    assert max(largest) <= 1400


def test_what_cannot_be_fitted_is_said() -> None:
    x = blobs()
    with pytest.raises(ValueError, match="3 points for 4 centroids"):
        kmeans(x[:3], 4, KMeansOptions())
    with pytest.raises(ValueError, match="only 2 distinct points for 3"):
        kmeans(x[:2].repeat(5, 1), 3, KMeansOptions())
    x[17, 2] = torch.nan
    with pytest.raises(ValueError, match="point 17"):
        kmeans(x, 4, KMeansOptions())


def _rank(rank: int, store: str, x: Tensor, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    part = x[:130] if rank == 0 else x[130:]
    fits, _ = residual_kmeans(part, (6, 5), KMeansOptions(niter=6))
    np.save(f"{folder}/{rank}.npy", torch.cat([fit.centroids for fit in fits]).numpy())
    dist.destroy_process_group()


def test_two_ranks_end_with_the_same_centroids_that_fit_all_points(tmp_path: Path) -> None:
    x = blobs()
    mp.spawn(_rank, (str(tmp_path / "store"), x, str(tmp_path)), nprocs=2)
    found = [torch.from_numpy(np.load(tmp_path / f"{rank}.npy")) for rank in (0, 1)]
    assert torch.equal(found[0], found[1])
    alone = kmeans(x, 6, KMeansOptions(niter=6)).inertia
    assert float(nearest(x, found[0][:6])[1].mean()) <= alone * 1.5
