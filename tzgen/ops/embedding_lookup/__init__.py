# SPDX-License-Identifier: Apache-2.0
"""Rows of an embedding table by id, as they are or pooled by bags.

T ids, N bags, V rows in the table, D its width. Works for T = 0 and N = 0, in eager, autograd,
torch.compile and torch.export (one opaque op with dynamic T and N).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tzgen.ops.embedding_lookup import op as _op
from tzgen.ops.embedding_lookup.reference import bag_of_id, id_scale

__all__ = ["embedding_lookup", "pool"]

MODES = ("none", "sum", "mean")


def embedding_lookup(
    weight: Tensor,
    values: Tensor,
    lengths: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    mode: str = "none",
    sparse_grad: bool = False,
) -> Tensor:
    """weight [V, D], values int64 [T] -> float32 [T, D] (mode none) or [N, D] (sum, mean).

    lengths int64 [N] sums to T: ids per bag; an empty bag gives zeros. weights float32 [T] multiply
    the rows; "mean" divides by the number of ids, as fbgemm does, not by the sum of weights. They
    are data: no gradient flows into them. The table's gradient is sparse COO (indices in id order,
    uncoalesced) with `sparse_grad`, else dense. float16 tables are summed in float32.
    """
    _check(weight, values, lengths, weights, mode)
    return torch.ops.tzgen.embedding_lookup(
        weight, values, lengths, weights, MODES.index(mode), sparse_grad
    )


def pool(
    rows: Tensor, lengths: Tensor, weights: Tensor | None = None, *, mode: str = "sum"
) -> Tensor:
    """rows [T, D] -> [N, D]: sum or mean of the rows of each bag; lengths int64 [N] sums to T."""
    if mode not in MODES[1:]:
        raise ValueError(f"pool knows the modes {MODES[1:]}; got {mode!r}")
    scale = id_scale(lengths, weights, MODES.index(mode), rows.size(0))
    if scale is not None:
        rows = rows * scale.unsqueeze(1)
    bags = bag_of_id(lengths, rows.size(0))
    return rows.new_zeros(lengths.size(0), rows.size(1)).index_add(0, bags, rows)


def _check(
    weight: Tensor, values: Tensor, lengths: Tensor | None, weights: Tensor | None, mode: str
) -> None:
    if mode not in MODES:
        raise ValueError(f"embedding_lookup knows the modes {MODES}; got {mode!r}")
    if weight.dim() != 2 or values.dim() != 1 or values.dtype != torch.int64:
        raise ValueError(
            "embedding_lookup wants weight [V, D] and int64 values [T]; got "
            f"{tuple(weight.shape)} and {values.dtype} {tuple(values.shape)}"
        )
    if (lengths is None) != (mode == "none"):
        raise ValueError(f"embedding_lookup needs lengths exactly for sum and mean; mode is {mode}")
    if lengths is not None and (lengths.dim() != 1 or lengths.dtype != torch.int64):
        raise ValueError(f"lengths must be int64 [N]; got {lengths.dtype} {tuple(lengths.shape)}")
    if weights is not None and weights.requires_grad:
        raise ValueError("embedding_lookup gives no gradient to per-id weights; detach them")


_op.register()
