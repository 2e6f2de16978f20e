# SPDX-License-Identifier: Apache-2.0
"""Relative bias of the HSTU paper: rab(i, j) = w_p[place(j) - place(i)] + w_t[bucket(time)].

Tables have one row that all heads share, or one row a head. Contextual tokens are no events: pairs
with one of them take no bias. All targets stand at the place after the last event.

    position table  [1 or H, 2P - 1], P = largest distance + 1; farther pairs use the last entry
    time table      [1 or H, K + 1], bucket = min(floor(ln(max(|dt|, 1)) / divisor), K)
                    of dt = t_query(i) - t(j)
    t_query(i)      the time of the *next* event for history tokens (what is being predicted), the
                    own time for the last event, for targets, and everywhere if append_stable

Source: Zhai et al. 2024 and generative-recommenders' research code (divisor 0.301). The last event
does not look at the first target's time there is here, so that candidates stay independent.
"""

from __future__ import annotations

import torch
from torch import Tensor


def position_index(
    i: Tensor, j: Tensor, history_end: Tensor, contextual_len: int, table_size: int
) -> Tensor:
    """Column of the position table, int64; `table_size` (past the end) where there is no bias."""
    reach = (table_size - 1) // 2
    distance = torch.minimum(j, history_end) - torch.minimum(i, history_end)
    index = distance.clamp(-reach, reach) + reach
    return index.masked_fill((i < contextual_len) | (j < contextual_len), table_size)


def time_index(
    i: Tensor,
    j: Tensor,
    query_time: Tensor,
    time_j: Tensor,
    contextual_len: int,
    table_size: int,
    divisor: float,
) -> Tensor:
    """Column of the time table, int64; `table_size` (past the end) where there is no bias.

    Times are subtracted as integers: float32 steps by 128 s at today's epoch.
    """
    delta = (query_time - time_j).abs().clamp(min=1).to(torch.float32)
    index = (delta.log() / divisor).to(torch.int64).clamp(max=table_size - 1)
    return index.masked_fill((i < contextual_len) | (j < contextual_len), table_size)


def query_place(i: Tensor, history_end: Tensor, append_stable: bool) -> Tensor:
    """Place of the token whose time is t_query(i); shapes broadcast."""
    if append_stable:
        return i.expand(torch.broadcast_shapes(i.shape, history_end.shape))
    following = torch.minimum(i + 1, history_end - 1)
    return torch.where(i < history_end, following, i)


def padded_table(table: Tensor) -> Tensor:
    """The table with a last column of zeros, which `*_index` names where there is no bias."""
    return torch.cat([table, table.new_zeros(table.size(0), 1)], dim=1)
