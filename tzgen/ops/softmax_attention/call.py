# SPDX-License-Identifier: Apache-2.0
"""What forward and backward of one softmax attention share, and who may see whom in it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tzgen.ops.hstu_attention.bias import position_index
from tzgen.ops.hstu_attention.mask import MaskSpec, visible

FAR = 1 << 40  # a history end that no place reaches


@dataclass(frozen=True)
class Call:
    """The arguments beside q, k, v.

    offsets, key_offsets int64 [B + 1]; max_len, max_key_len: at least the longest row. mask None:
    every query sees every key of its row. num_targets int64 [B] with a mask. position_bias
    [1 or H, 2P - 1].
    """

    offsets: Tensor
    key_offsets: Tensor
    max_len: int
    max_key_len: int
    scale: float
    mask: MaskSpec | None
    num_targets: Tensor | None
    position_bias: Tensor | None

    def history_ends(self, rows: Tensor) -> Tensor | None:
        """Where the targets of those rows begin, int64 [G, 1, 1]; None where there are none."""
        if self.num_targets is None:
            return None
        lengths = self.offsets.diff().index_select(0, rows)
        return (lengths - self.num_targets.index_select(0, rows)).view(-1, 1, 1)

    def seen(self, i: Tensor, j: Tensor, ends: Tensor | None, key_lengths: Tensor) -> Tensor:
        """Which keys a query attends to, bool [G or 1, R, C].

        i int64 [R, 1], j int64 [1, C]: places in their rows; key_lengths int64 [G, 1, 1]. Keys past
        the end of a row are never seen by a query that is there.
        """
        if self.mask is None:
            return (j < key_lengths).expand(-1, i.size(0), -1)
        return visible(i, j, key_lengths if ends is None else ends, self.mask)

    def columns(self, i: Tensor, j: Tensor, ends: Tensor | None) -> Tensor | None:
        """Columns of the bias table, int64 [G or 1, R, C]; None without a table."""
        if self.position_bias is None:
            return None
        contextual = 0 if self.mask is None else self.mask.contextual_len
        last = i.new_full((1, 1, 1), FAR) if ends is None else ends
        return position_index(i, j, last, contextual, self.position_bias.size(1))
