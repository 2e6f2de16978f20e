# SPDX-License-Identifier: Apache-2.0
"""k-means on rows that may be spread over ranks, plain or balanced, and its residual form.

N points of this rank, D dimensions, K centroids. Every rank holds its own points and ends with the
same centroids: Lloyd's sums are added over ranks, the k-means++ start is drawn from a sample that
rank 0 shares. Distances are computed in blocks, so memory is O(N + K D), never O(N K) at once.

Sources: Arthur & Vassilvitskii 2007 (k-means++); Deng et al. 2025, OneRec (balanced residual
k-means: each centroid takes its ceil(N / K) nearest free points).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tzgen.modules.collectives import from_first_rank, gather_rows, row_counts, sum_over_ranks

BLOCK_NUMBERS = 1 << 22  # distances of a block: 16 MiB in float32


class CannotFit(ValueError):
    """The points do not make so many centroids: too few, too few distinct ones, or no numbers."""


@dataclass(frozen=True)
class KMeansOptions:
    """Under faiss's names. `start_rows`: points of all ranks that k-means++ draws from."""

    niter: int = 25
    nredo: int = 1
    seed: int = 1234
    spherical: bool = False
    balanced: bool = False
    start_rows: int = 65536


@dataclass(frozen=True)
class KMeansFit:
    """centroids [K, D]; inertia: mean squared distance of all ranks' points; empty: how many
    centroids had to be moved because no point was nearest to them, summed over iterations."""

    centroids: Tensor
    inertia: float
    empty: int


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Where codes are chosen: bfloat16's differences of large squares would choose others. Nothing
    is entered, or traced, outside autocast."""
    active = torch.is_autocast_enabled(x.device.type)
    return torch.autocast(x.device.type, enabled=False) if active else nullcontext()


def nearest(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Index int64 [N] of the nearest centroid and the squared distance [N]; ties: the lowest."""
    norms = centroids.square().sum(1)
    rows = max(1, BLOCK_NUMBERS // max(centroids.size(0), 1))
    index, distance = [], []
    for block in x.split(rows):
        with without_autocast(x):
            scores = torch.addmm(norms, block, centroids.t(), alpha=-2.0)
        best = scores.min(dim=1)
        index.append(best.indices)
        distance.append((best.values + block.square().sum(1)).clamp(min=0.0))
    if not index:
        return x.new_zeros(0, dtype=torch.int64), x.new_zeros(0)
    return torch.cat(index), torch.cat(distance)


def balanced_nearest(x: Tensor, centroids: Tensor) -> Tensor:
    """int64 [N]: every centroid in turn takes its ceil(N / K) nearest points that are still free.

    No centroid gets more than ceil(N / K). Distances are computed in blocks of centroids.
    """
    share = -(-x.size(0) // max(centroids.size(0), 1))
    block, distances = max(1, BLOCK_NUMBERS // max(x.size(0), 1)), x.new_empty(0)
    codes = torch.full((x.size(0),), -1, dtype=torch.int64, device=x.device)
    free = torch.arange(x.size(0), device=x.device)
    for code in range(centroids.size(0)):
        if free.numel() == 0:
            break
        if code % block == 0:
            distances = torch.cdist(x, centroids[code : code + block])
        count = min(share, free.numel())
        taken = distances[free, code % block].topk(count, largest=False).indices
        codes[free[taken]] = code
        keep = torch.ones(free.numel(), dtype=torch.bool, device=x.device)
        keep[taken] = False
        free = free[keep]
    return codes


def kmeans(x: Tensor, k: int, options: KMeansOptions) -> KMeansFit:
    """Fit K centroids to the points [N, D] of all ranks; the best of `nredo` starts.

    Raises CannotFit for NaN or infinity, and for fewer distinct points than centroids.
    """
    if not bool(torch.isfinite(x).all()):
        row = int((~torch.isfinite(x)).any(dim=1).nonzero()[0])
        raise CannotFit(f"k-means: point {row} of this rank holds NaN or infinity")
    x = F.normalize(x, dim=1) if options.spherical else x
    fits = [_fit(x, k, options, options.seed + redo) for redo in range(max(options.nredo, 1))]
    return min(fits, key=lambda fit: fit.inertia)


def _fit(x: Tensor, k: int, options: KMeansOptions, seed: int) -> KMeansFit:
    generator = torch.Generator().manual_seed(seed)
    centroids = _start(x, k, options.start_rows, generator)
    empty = 0
    for _ in range(options.niter):
        codes = balanced_nearest(x, centroids) if options.balanced else nearest(x, centroids)[0]
        sums = sum_over_ranks(x.new_zeros(k, x.size(1)).index_add_(0, codes, x))
        counts = sum_over_ranks(torch.bincount(codes, minlength=k).to(x.dtype))
        moved = sums / counts.clamp(min=1.0).unsqueeze(1)
        dead = counts == 0
        if bool(dead.any()):
            empty += int(dead.sum())
            moved = _reseed(x, moved, dead)
        if options.spherical:
            moved = F.normalize(moved, dim=1)
        done = bool(torch.equal(moved, centroids))
        centroids = moved
        if done:
            break
    distance = nearest(x, centroids)[1].sum()
    total = sum_over_ranks(torch.stack([distance, distance.new_tensor(float(x.size(0)))]))
    return KMeansFit(centroids, float(total[0] / total[1].clamp(min=1.0)), empty)


def _start(x: Tensor, k: int, start_rows: int, generator: torch.Generator) -> Tensor:
    """k-means++ on a sample of all ranks' points: each next one with probability ~ distance^2."""
    counts = row_counts(x)
    share = max(-(-start_rows // len(counts)), k)  # of this rank
    order = torch.randperm(x.size(0), generator=generator)[:share].to(x.device)
    sample = gather_rows(x.index_select(0, order))
    if sum(counts) < k:
        raise CannotFit(
            f"k-means: {sum(counts)} points for {k} centroids; expected at least as many "
            "points. Use a smaller codebook or more items"
        )
    first = int(torch.randint(sample.size(0), (1,), generator=generator))
    chosen, norms = [sample[first]], sample.square().sum(1)
    distance = _distance_to(sample, norms, chosen[0])
    for _ in range(1, k):
        weight = distance.double().cumsum(0)
        if float(weight[-1]) <= 0.0:
            raise CannotFit(
                f"k-means: only {len(chosen)} distinct points for {k} centroids. Use a smaller "
                "codebook, or look for repeated embeddings"
            )
        draw = torch.rand(1, generator=generator, dtype=torch.float64).to(x.device) * weight[-1]
        index = torch.searchsorted(weight, draw, right=True).clamp(max=sample.size(0) - 1)
        chosen.append(sample[int(index)])
        distance = torch.minimum(distance, _distance_to(sample, norms, chosen[-1]))
    return from_first_rank(torch.stack(chosen))


def _distance_to(points: Tensor, norms: Tensor, one: Tensor) -> Tensor:
    """Squared distances [N] to one point; rounding around zero counts as zero, so that copies of a
    chosen point are not drawn again."""
    square = one.dot(one)
    distance = norms - 2.0 * (points @ one) + square
    return torch.where(distance > 1e-6 * (norms + square), distance, 0.0)


def _reseed(x: Tensor, centroids: Tensor, dead: Tensor) -> Tensor:
    """Put the dead centroids on the points of all ranks that are farthest from the living ones."""
    count = int(dead.sum())
    distance = nearest(x, centroids[~dead])[1]
    top = distance.topk(min(count, distance.numel()))
    rows, far = gather_rows(x.index_select(0, top.indices)), gather_rows(top.values)
    best = far.topk(min(count, far.numel())).indices
    moved = centroids.clone()
    moved[dead.nonzero().flatten()[: best.numel()]] = rows.index_select(0, best)
    return moved


def residual_kmeans(
    x: Tensor, sizes: tuple[int, ...], options: KMeansOptions, *, normalize_residuals: bool = False
) -> tuple[list[KMeansFit], Tensor]:
    """One k-means a level on what the levels before left over.

    Returns the fits and the codes int64 [N, levels] of this rank's points, by the nearest centroid
    (also with `balanced`, which only shapes the fit).
    """
    residual, fits, codes = x, [], []
    for level, size in enumerate(sizes):
        points = F.normalize(residual, dim=1) if normalize_residuals else residual
        fit = kmeans(points, size, _for_level(options, level))
        code = nearest(points, fit.centroids)[0]
        residual = points - fit.centroids.index_select(0, code)
        fits.append(fit)
        codes.append(code)
    return fits, torch.stack(codes, dim=1)


def _for_level(options: KMeansOptions, level: int) -> KMeansOptions:
    """Another seed for every level, apart from those of the restarts."""
    return replace(options, seed=options.seed + 1_000_003 * level)
