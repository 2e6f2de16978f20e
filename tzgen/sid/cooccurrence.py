# SPDX-License-Identifier: Apache-2.0
"""Codes from who is bought together: hierarchical spectral clustering of the co-occurrence graph.

    graph     items are nodes; an edge weighs the pairs of training events of one user that are at
              most `window` steps apart, summed over users
    level s   every cluster is cut into at most K_s, of equal size, by k-means of its spectral
              embedding: the first K_s eigenvectors of D^-1/2 (A + share * mean degree I) D^-1/2,
              rows at length one
    last      items of a leaf are numbered, most frequent first

No item vectors are needed, and an item that nobody bought is in a cluster of such items. Source:
Hua et al. 2023 (P5-CID, collaborative indexing). There clusters have any size and are cut until
they are small, so that IDs differ in length. Here sizes are equal, since plain k-means leaves one
cluster with most of the items of a skewed catalogue, and every ID has as many codes, which tries
and generators want.
N items, E edges, K codes of a level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tzgen.modules.kmeans import KMeansOptions, balanced_nearest, kmeans
from tzgen.sid.space import Ints, group_ranks

SELF_LOOP = 0.1  # of the mean degree: keeps pairs of items from making eigenvalues of -1
ROUNDS = 30  # of the subspace iteration


@dataclass(frozen=True)
class Graph:
    """Symmetric: edges (a, b) and (b, a) are both there. int64 [E], int64 [E], float32 [E]."""

    a: Ints
    b: Ints
    weight: np.ndarray[tuple[int], np.dtype[np.float32]]
    num_items: int


def build_graph(items: Ints, offsets: Ints, num_items: int, *, window: int) -> Graph:
    """From packed sequences of item places [L] with offsets [B + 1]; pairs of one item are no edge.

    window: largest distance of a pair in events.
    """
    last = np.repeat(offsets[1:], np.diff(offsets))
    keys = []
    for distance in range(1, window + 1):
        at = np.flatnonzero(np.arange(len(items)) + distance < last)
        if not len(at):
            break
        left, right = items[at], items[at + distance]
        apart = left != right
        keys.append(left[apart] * num_items + right[apart])
        keys.append(right[apart] * num_items + left[apart])
    pairs, counts = np.unique(np.concatenate(keys or [np.zeros(0, np.int64)]), return_counts=True)
    return Graph(pairs // num_items, pairs % num_items, counts.astype(np.float32), num_items)


def cluster_codes(graph: Graph, sizes: tuple[int, ...], counts: Ints, *, seed: int) -> Ints:
    """int64 [N, len(sizes) + 1]: a cluster a level, then the item's number in its leaf.

    counts [N]: how often each item occurs, for the numbers. The last level has as many codes as the
    largest leaf has items.
    """
    cluster = np.zeros(graph.num_items, dtype=np.int64)
    codes = []
    for level, size in enumerate(sizes):
        code = np.zeros(graph.num_items, dtype=np.int64)
        for place, name in enumerate(np.unique(cluster)):
            members = np.flatnonzero(cluster == name)
            code[members] = _cut(graph, members, size, seed=seed + 1009 * level + place)
        codes.append(code)
        cluster = np.unique(cluster * size + code, return_inverse=True)[1].reshape(-1)
    order = np.argsort(-counts, kind="stable")
    number = np.empty(graph.num_items, dtype=np.int64)
    number[order] = group_ranks(cluster[order])
    return np.stack([*codes, number], axis=1)


def _cut(graph: Graph, members: Ints, size: int, *, seed: int) -> Ints:
    """Clusters 0 .. size - 1 of the subgraph of `members`; items without an edge in it share the
    last one that is used."""
    inside = np.full(graph.num_items, -1, dtype=np.int64)
    inside[members] = np.arange(len(members))
    kept = (inside[graph.a] >= 0) & (inside[graph.b] >= 0)
    a, b, weight = inside[graph.a[kept]], inside[graph.b[kept]], graph.weight[kept]
    linked = np.unique(a)
    code = np.zeros(len(members), dtype=np.int64)
    alone = np.ones(len(members), dtype=np.bool_)
    alone[linked] = False
    room = size - int(alone.any())
    if len(linked) and room > 1:
        place = np.full(len(members), -1, dtype=np.int64)
        place[linked] = np.arange(len(linked))
        points = _embed(place[a], place[b], weight, len(linked), min(room, len(linked)), seed)
        code[linked] = _kmeans(points, min(room, len(linked)), seed)
    code[alone] = int(code[linked].max(initial=-1)) + 1
    return np.minimum(code, size - 1)


def _embed(a: Ints, b: Ints, weight: np.ndarray, n: int, dim: int, seed: int) -> Tensor:  # type: ignore[type-arg]
    """The leading eigenvectors [n, dim] by subspace iteration, rows at length one."""
    degree = torch.zeros(n).index_add_(0, torch.from_numpy(a), torch.from_numpy(weight))
    loop = SELF_LOOP * float(degree.mean())
    scale = (degree + loop).rsqrt()
    rows, columns = torch.from_numpy(a), torch.from_numpy(b)
    values = torch.from_numpy(weight) * scale[rows] * scale[columns]
    matrix = torch.sparse_coo_tensor(
        torch.stack([rows, columns]), values, (n, n), check_invariants=False
    ).coalesce()
    diagonal = (loop * scale.square()).unsqueeze(1)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(n, dim, generator=generator)).Q
    for _ in range(ROUNDS):
        # eigenvalues lie in [-1, 1]: the shift by one makes the largest the leading ones
        basis = torch.linalg.qr(matrix @ basis + diagonal * basis + basis).Q
    small = basis.t() @ (matrix @ basis + diagonal * basis)
    vectors = basis @ torch.linalg.eigh(small).eigenvectors.flip(1)
    return torch.nn.functional.normalize(vectors, dim=1)


def _kmeans(points: Tensor, k: int, seed: int) -> Ints:
    distinct = torch.unique(points, dim=0).size(0)
    if distinct <= k:
        found: Ints = np.unique(points.numpy(), axis=0, return_inverse=True)[1].reshape(-1)
        return found.astype(np.int64) % k
    fit = kmeans(points, min(k, distinct - 1), KMeansOptions(niter=20, seed=seed, balanced=True))
    return balanced_nearest(points, fit.centroids).numpy()
