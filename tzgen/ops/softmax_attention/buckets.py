# SPDX-License-Identifier: Apache-2.0
"""T5's relative position buckets, as the table by distance that `softmax_attention` takes.

    distance r = place of the key - place of the query
    bidirectional    half of the buckets for r > 0, half for r <= 0; |r| counts
    unidirectional   all buckets for -r; keys ahead share bucket 0
    within a half of n buckets: small distances have one each up to n / 2, larger ones share buckets
    whose width grows as a logarithm up to `max_distance`, beyond which all share the last

Source: Raffel et al. 2020 (T5), section 2.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def relative_buckets(
    distance: Tensor, *, num_buckets: int, max_distance: int, bidirectional: bool
) -> Tensor:
    """Bucket of each distance, int64 of the same shape.

    >>> r = torch.tensor([-200, -20, -3, 0, 3, 20])
    >>> relative_buckets(r, num_buckets=32, max_distance=128, bidirectional=True).tolist()
    [15, 10, 3, 0, 19, 26]
    >>> relative_buckets(r, num_buckets=32, max_distance=128, bidirectional=False).tolist()
    [31, 17, 3, 0, 0, 0]
    """
    half = num_buckets // 2 if bidirectional else num_buckets
    exact = half // 2
    if exact < 1 or max_distance <= exact:
        raise ValueError(
            f"{num_buckets} buckets and max_distance {max_distance}: expected at least "
            f"{4 if bidirectional else 2} buckets and a distance beyond the {exact} exact ones"
        )
    far = distance.abs() if bidirectional else (-distance).clamp(min=0)
    octaves = (far.clamp(min=1).to(torch.float64) / exact).log() / math.log(max_distance / exact)
    rounding = 1e-9  # a distance on the border of two buckets belongs to the farther one
    wide = exact + (octaves * (half - exact) + rounding).to(torch.int64)
    bucket = torch.where(far < exact, far, wide.clamp(max=half - 1))
    return bucket + half * (distance > 0) if bidirectional else bucket


def distance_table(table: Tensor, *, max_distance: int, bidirectional: bool) -> Tensor:
    """Bias by bucket [1 or H, num_buckets] -> by distance [1 or H, 2 * max_distance + 1].

    Differentiable. Distances beyond the ends share the last entry in both forms.
    """
    distance = torch.arange(-max_distance, max_distance + 1, device=table.device)
    buckets = relative_buckets(
        distance,
        num_buckets=table.size(1),
        max_distance=max_distance,
        bidirectional=bidirectional,
    )
    return table.index_select(1, buckets)
