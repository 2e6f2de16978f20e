# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs
"""What the Triton kernels of STU attention do to one tile: load it, SiLU, the relative bias.

Scores arrive halved: kernels fold alpha / 2 into the operand that they load once, because
SiLU(x) = h + h * tanh(h) with h = x / 2 costs one special-function instruction an element where
x / (1 + exp(-x)) costs two, and those units are what a forward pass runs out of first
(16 results a clock and SM, against 4096 bf16 FLOP of the tensor cores).
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

# tanh.approx errs by up to 2^-11, which SiLU(x) multiplies by x / 2. Below this h the true SiLU is
# smaller than 8e-5, far below a half's rounding of the scores near 0: take it as 0.
TAIL = tl.constexpr(-6.0)


class View(NamedTuple):
    """A tensor [L, H, d] as a kernel takes it; the last stride is 1."""

    pointer: Any
    token_stride: int
    head_stride: int


class Rows(NamedTuple):
    """What differs per row: offsets int64 [B + 1], num_targets int64 [B], timestamps int64 [L]."""

    offsets: Any
    num_targets: Any
    timestamps: Any


class Tables(NamedTuple):
    """Bias tables [1 or H, columns] of `bias.py` in float32; a stride of 0 shares one by heads."""

    position: Any
    position_stride: int
    time: Any
    time_stride: int


class Tile(NamedTuple):
    """Compile-time constants of a kernel; `padded` widths are the next powers of two."""

    block_m: int
    block_n: int
    attention_dim: int
    hidden_dim: int
    padded_attention: int
    padded_hidden: int
    position_columns: int
    time_columns: int
    time_divisor: float
    precision: str
    half: bool
    fast_silu: bool


@triton.jit
def load_tile(base, start, stop, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr,
              PADDED: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """[ROWS, PADDED] from token `start` on; zeros past WIDTH and, if MASKED, from `stop` on.

    Offsets inside the tile fit int32; the token's own may not: it is multiplied in int64.
    """
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, PADDED)
    first = base + tl.cast(start, tl.int64) * stride
    pointers = first + rows[:, None] * stride + dims[None, :]
    if MASKED:
        mask = (start + rows < stop)[:, None] & (dims < WIDTH)[None, :]
        return tl.load(pointers, mask=mask, other=0.0)
    elif WIDTH < PADDED:
        return tl.load(pointers, mask=(dims < WIDTH)[None, :], other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def store_tile(base, start, stop, stride, value, ROWS: tl.constexpr, WIDTH: tl.constexpr,
               PADDED: tl.constexpr):  # fmt: skip
    """The reverse of `load_tile`, in the pointer's dtype."""
    kept = (start + tl.arange(0, ROWS) < stop)[:, None]
    store_rows(base, start, kept, stride, value, ROWS, WIDTH, PADDED)


@triton.jit
def store_rows(base, start, kept, stride, value, ROWS: tl.constexpr, WIDTH: tl.constexpr,
               PADDED: tl.constexpr):  # fmt: skip
    """Those rows of a tile that `kept` [ROWS, 1] names."""
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, PADDED)
    first = base + tl.cast(start, tl.int64) * stride
    pointers = first + rows[:, None] * stride + dims[None, :]
    tl.store(pointers, value.to(base.dtype.element_ty), mask=kept & (dims < WIDTH)[None, :])


@triton.jit
def tanh_approx(x):
    """One instruction of sm_75 and later."""
    return tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def silu(half, FAST: tl.constexpr):
    """SiLU(2 * half)."""
    if FAST:
        return tl.where(half < TAIL, 0.0, half + half * tanh_approx(half))
    else:
        return 2.0 * half / (1.0 + tl.exp(-2.0 * half))


@triton.jit
def silu_and_slope(half, FAST: tl.constexpr):
    """SiLU(x) and its derivative sigma + SiLU(x) (1 - sigma), at x = 2 * half."""
    if FAST:
        sigma = tl.where(half < TAIL, 0.0, 0.5 + 0.5 * tanh_approx(half))
    else:
        sigma = 1.0 / (1.0 + tl.exp(-2.0 * half))
    value = 2.0 * half * sigma
    return value, sigma + value * (1.0 - sigma)


@triton.jit
def position_column(i, j, history_end, COLUMNS: tl.constexpr):
    """`bias.position_index` where both tokens are events."""
    reach = (COLUMNS - 1) // 2
    distance = tl.minimum(j, history_end) - tl.minimum(i, history_end)
    return tl.minimum(tl.maximum(distance, -reach), reach) + reach


@triton.jit
def time_column(query_time, time_j, COLUMNS: tl.constexpr, DIVISOR: tl.constexpr):
    """`bias.time_index` where both tokens are events; integers are subtracted as such."""
    delta = tl.maximum(tl.abs(query_time - time_j), 1).to(tl.float32)
    return tl.minimum((tl.log(delta) / DIVISOR).to(tl.int32), COLUMNS - 1)


@triton.jit
def query_place(i, history_end, SPEC: tl.constexpr):
    """`bias.query_place`."""
    if SPEC.append_stable:
        return i
    else:
        return tl.where(i < history_end, tl.minimum(i + 1, history_end - 1), i)


@triton.jit
def half_bias(i, j, history_end, query_time, time_j, tables, head, SPEC: tl.constexpr,
              TILE: tl.constexpr):  # fmt: skip
    """Half of rab(i, j), float32 in the shape that i and j broadcast to."""
    events = (i >= SPEC.contextual_len) & (j >= SPEC.contextual_len)
    total = tl.where(events, 0.0, 0.0)
    if tables.position is not None:
        column = position_column(i, j, history_end, TILE.position_columns)
        base = tables.position + head * tables.position_stride
        total += 0.5 * tl.load(base + column, mask=events, other=0.0)
    if tables.time is not None:
        column = time_column(query_time, time_j, TILE.time_columns, TILE.time_divisor)
        base = tables.time + head * tables.time_stride
        total += 0.5 * tl.load(base + column, mask=events, other=0.0)
    return total


@triton.jit
def half_own_bias(tables, head, TILE: tl.constexpr):
    """Half of rab(i, i) of a target: distance and time are zero; float32 scalar."""
    total = 0.0
    if tables.position is not None:
        middle = (TILE.position_columns - 1) // 2
        total += 0.5 * tl.load(tables.position + head * tables.position_stride + middle)
    if tables.time is not None:
        total += 0.5 * tl.load(tables.time + head * tables.time_stride)
    return total


@triton.jit
def row_of(slot, order, tiles_per_row, num_rows, rows):
    """Of a program: row, tile, first token (int64), length and history end (int32).

    `order` lists them, heaviest first; None means last tiles of all rows first.
    """
    if order is not None:
        code = tl.load(order + slot)
        row = code // tiles_per_row
        tile = (code % tiles_per_row).to(tl.int32)
    else:
        row = slot % num_rows
        tile = tiles_per_row - 1 - slot // num_rows
    start = tl.load(rows.offsets + row)
    length = (tl.load(rows.offsets + row + 1) - start).to(tl.int32)
    history_end = length
    if rows.num_targets is not None:
        history_end = length - tl.load(rows.num_targets + row).to(tl.int32)
    return row, tile, start, length, history_end


@triton.jit
def load_times(timestamps, start, places, length):
    """int64 timestamps of places of the row that starts at token `start`; 0 past its end."""
    return tl.load(timestamps + start + places, mask=places < length, other=0)
