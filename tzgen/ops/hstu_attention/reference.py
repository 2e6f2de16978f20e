# SPDX-License-Identifier: Apache-2.0
"""STU attention as plain differentiable PyTorch, one row at a time: the specification.

Each row is computed alone with its own shapes, so that its output cannot depend on the rest of the
batch, not even by rounding. Slow on purpose; tests compare everything else with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tzgen.ops.hstu_attention import bias as rab
from tzgen.ops.hstu_attention.mask import MaskSpec, dense_mask


def hstu_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    alpha: float,
    divisor: float,
    mask: MaskSpec,
    num_targets: Tensor | None = None,
    timestamps: Tensor | None = None,
    position_bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    time_bias_divisor: float = 0.301,
) -> Tensor:
    """`hstu_attention` without a kernel; same arguments, same result."""
    bounds = offsets.tolist()
    targets = [0] * (len(bounds) - 1) if num_targets is None else num_targets.tolist()
    math_dtype = torch.promote_types(q.dtype, torch.float32)
    rows = []
    for start, stop, count in zip(bounds[:-1], bounds[1:], targets, strict=True):
        # [n, H, d] -> [H, n, d]; contiguous, so that the place in the batch changes no rounding
        q_Hnd, k_Hnd, v_Hnd = (
            x[start:stop].to(math_dtype).transpose(0, 1).contiguous() for x in (q, k, v)
        )
        times = None if timestamps is None else timestamps[start:stop]
        scores = alpha * (q_Hnd @ k_Hnd.transpose(1, 2))
        scores = scores + _row_bias(
            stop - start, count, mask, times, position_bias, time_bias, time_bias_divisor, scores
        )
        seen = dense_mask(stop - start, count, mask, times).to(q.device)
        weights = F.silu(scores) * seen / divisor
        rows.append((weights @ v_Hnd).transpose(0, 1))
    out = torch.cat(rows) if rows else v.new_zeros(0, v.size(1), v.size(2), dtype=math_dtype)
    return out.to(q.dtype)


def _row_bias(
    length: int,
    num_targets: int,
    mask: MaskSpec,
    times: Tensor | None,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    time_bias_divisor: float,
    like: Tensor,
) -> Tensor:
    """rab of one row, [1 or H, n, n] in the dtype of `like`."""
    index = torch.arange(length, device=like.device)
    i, j = index[:, None], index[None, :]
    end = torch.tensor(length - num_targets, device=like.device)
    total = like.new_zeros(1, length, length)
    if position_bias is not None:
        column = rab.position_index(i, j, end, mask.contextual_len, position_bias.size(1))
        total = total + rab.padded_table(position_bias.to(like.dtype))[:, column]
    if time_bias is not None and times is not None:
        query_time = times[rab.query_place(index, end, mask.append_stable)][:, None]
        column = rab.time_index(
            i,
            j,
            query_time,
            times[None, :],
            mask.contextual_len,
            time_bias.size(1),
            time_bias_divisor,
        )
        total = total + rab.padded_table(time_bias.to(like.dtype))[:, column]
    return total
