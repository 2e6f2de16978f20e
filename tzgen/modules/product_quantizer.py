# SPDX-License-Identifier: Apache-2.0
"""Optimised product quantization: the parts of a rotated vector get a code each, in no order.

N vectors, D dimensions in P parts of D / P, K codes a part. Source: Ge et al. 2013 (OPQ), as
RPG and VQ-Rec use it for semantic IDs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tzgen.modules.collectives import sum_over_ranks
from tzgen.modules.kmeans import KMeansOptions, kmeans, nearest, without_autocast


def opq_rotation(
    x: Tensor, parts: int, size: int, options: KMeansOptions, rounds: int = 8
) -> tuple[Tensor, Tensor]:
    """Optimised product quantization (Ge et al. 2013): x [N, D] -> rotation [D, D] and codebooks
    [parts, K, D / parts] that alternate between k-means of the parts and the best rotation.
    """
    dim = x.size(1)
    if dim % parts:
        raise ValueError(f"{parts} sub-vectors of {dim} dimensions: expected a divisor")
    second = sum_over_ranks(x.t() @ x)
    rotation = torch.linalg.eigh(second).eigenvectors.flip(1)
    # dimensions dealt round the parts, largest first, so that every part gets some of the variance
    order = torch.arange(dim, device=x.device).view(dim // parts, parts).t().reshape(-1)
    rotation = rotation.index_select(1, order)
    books = torch.empty(0)
    for turn in range(rounds):
        turned = (x @ rotation).view(-1, parts, dim // parts)
        fits = []
        for part in range(parts):
            seeded = replace(options, seed=options.seed + part + 7919 * turn)
            fits.append(_part(turned[:, part], size, seeded))
        books = torch.stack([fit[0] for fit in fits])
        if turn + 1 < rounds:
            decoded = torch.stack([book[code] for book, code in fits], 1).reshape(-1, dim)
            u, _, v = torch.linalg.svd(sum_over_ranks(x.t() @ decoded))
            rotation = u @ v
    return rotation, books


def _part(x: Tensor, size: int, options: KMeansOptions) -> tuple[Tensor, Tensor]:
    centroids = kmeans(x, size, options).centroids
    return centroids, nearest(x, centroids)[0]


def product_codes(x: Tensor, rotation: Tensor, books: Tensor) -> Tensor:
    """int64 [N, parts]: the nearest code of every part of the rotated x."""
    with without_autocast(x):
        turned = (x @ rotation).view(x.size(0), books.size(0), -1)
    return torch.stack([nearest(turned[:, p], books[p])[0] for p in range(books.size(0))], dim=1)
