# SPDX-License-Identifier: Apache-2.0
"""Arguments that the Triton kernels of STU attention share, made once a call on the host."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention.triton_configs import MAX_WIDTH, Config, Shape, Tuning
from tzgen.ops.hstu_attention.triton_order import TileOrder, tile_order
from tzgen.ops.hstu_attention.triton_tiles import Rows, Tables, Tile, View


class Launch:
    """One call's tensors and numbers in the form that kernels take."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, call: Call, tuning: Tuning
    ) -> None:
        widths = (q.size(2), v.size(2))
        if not 0 < min(widths) <= max(widths) <= MAX_WIDTH:
            raise ValueError(
                f"the Triton kernels take attention_dim and hidden_dim from 1 to {MAX_WIDTH}; "
                f"got {widths[0]} and {widths[1]}: use kernel PYTORCH"
            )
        self._call, self._tuning = call, tuning
        self._offsets, self._total = offsets, q.size(0)
        self._widths = widths
        biased = call.position_bias is not None or call.time_bias is not None
        self.shape = Shape.of(q, v, call.max_len, biased)
        self.rows = Rows(offsets.contiguous(), _flat(call.num_targets), _flat(call.timestamps))
        self.tables = Tables(*_table(call.position_bias), *_table(call.time_bias))

    @staticmethod
    def views(*tensors: Tensor) -> tuple[View, ...]:
        """[L, H, d] each: any strides but the last one's; a copy where that is not 1."""
        unit = (x if x.stride(2) == 1 or x.size(2) == 1 else x.contiguous() for x in tensors)
        return tuple(View(x, x.stride(0), x.stride(1)) for x in unit)

    def order(self, block: int, *, by_key: bool = False) -> TileOrder:
        """Which program takes which tile of `block` tokens."""
        return tile_order(
            self._offsets,
            self._call.num_targets,
            self._call.mask,
            block=block,
            max_len=self._call.max_len,
            total=self._total,
            by_key=by_key,
            listed=self._tuning.listed_order,
        )

    def tile(self, config: Config) -> Tile:
        """Compile-time constants of a kernel."""
        attention, hidden = self._widths
        position, time = self._call.position_bias, self._call.time_bias
        return Tile(
            config.block_m,
            config.block_n,
            attention,
            hidden,
            padded(attention),
            padded(hidden),
            0 if position is None else position.size(1),
            0 if time is None else time.size(1),
            self._call.time_bias_divisor,
            self.shape.precision,
            self.shape.half,
            self._tuning.uses_fast_silu(self.shape),
        )


def padded(width: int) -> int:
    """A width that `tl.dot` can take: a power of two from 16."""
    return max(16, triton.next_power_of_2(width))


def _flat(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _table(table: Tensor | None) -> tuple[Tensor | None, int]:
    """float32 and contiguous, with the stride from head to head."""
    if table is None:
        return None, 0
    table = table.to(torch.float32).contiguous()
    return table, 0 if table.size(0) == 1 else table.size(1)
