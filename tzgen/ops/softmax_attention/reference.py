# SPDX-License-Identifier: Apache-2.0
"""Softmax attention, row by row and differentiable: what the other implementations are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from tzgen.ops.hstu_attention.bias import padded_table
from tzgen.ops.hstu_attention.mask import MaskSpec
from tzgen.ops.softmax_attention.call import Call


def softmax_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    scale: float,
    key_offsets: Tensor | None = None,
    mask: MaskSpec | None = None,
    num_targets: Tensor | None = None,
    position_bias: Tensor | None = None,
) -> Tensor:
    """See `softmax_attention`; the same arguments without the bounds."""
    keys = offsets if key_offsets is None else key_offsets
    call = Call(offsets, keys, 0, 0, scale, mask, num_targets, position_bias)
    out = []
    for row in range(offsets.numel() - 1):
        q_nHd = q[int(offsets[row]) : int(offsets[row + 1])]
        k_mHd, v_mHd = (x[int(keys[row]) : int(keys[row + 1])] for x in (k, v))
        out.append(_row(q_nHd, k_mHd, v_mHd, torch.tensor([row], device=q.device), call))
    return torch.cat(out) if out else v.new_zeros(0, *v.shape[1:])


def _row(q_nHd: Tensor, k_mHd: Tensor, v_mHd: Tensor, row: Tensor, call: Call) -> Tensor:
    count, keys = q_nHd.size(0), k_mHd.size(0)
    i = torch.arange(count, device=row.device)[:, None]
    j = torch.arange(keys, device=row.device)[None, :]
    ends = call.history_ends(row)
    scores = torch.einsum("nhd,mhd->hnm", q_nHd, k_mHd) * call.scale
    columns = call.columns(i, j, ends)
    if columns is not None and call.position_bias is not None:
        scores = scores + padded_table(call.position_bias)[:, columns[0]]
    seen = call.seen(i, j, ends, row.new_full((1, 1, 1), keys))[0]
    weights = torch.where(seen, scores.exp(), 0.0)
    total = weights.sum(-1, keepdim=True)
    weights = weights / torch.where(total > 0, total, 1.0)  # a query without keys gives zeros
    return torch.einsum("hnm,mhd->nhd", weights, v_mHd)
