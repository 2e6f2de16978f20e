# SPDX-License-Identifier: Apache-2.0
"""`jagged_dense_bmm_broadcast_add` with one weight a token: the specification."""

from __future__ import annotations

import torch
from torch import Tensor


def jagged_dense_bmm_broadcast_add_reference(
    jagged: Tensor, offsets: Tensor, dense: Tensor, bias: Tensor
) -> Tensor:
    """Same arguments, same result, plain differentiable PyTorch; O(L K M) memory."""
    rows = torch.repeat_interleave(offsets.diff())
    return torch.einsum("lk,lkm->lm", jagged, dense[rows]) + bias[rows]
