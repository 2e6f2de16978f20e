# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs
"""The mask of `mask.py` on the device: who sees whom, and which tiles need no mask at all.

Every Triton kernel of STU attention uses these functions. i, j are int32 places of a row,
`history_end` and `length` int32 scalars of it, SPEC the `MaskSpec` itself, known at compile time,
so that lines of the mask that are off cost nothing.

`key_range` says which keys a tile of queries can see, `query_range` which queries can see a tile of
keys. Both give two stretches of the row, of which a middle part is seen in full:

    extra [extra_start, extra_stop)   full below extra_full
    main  [low, high)                 full in [full_low, full_high)

`plan` cuts them into full tiles and masked tiles; `full_tile`, `masked_tile` are the n-th of them.
The gap between the stretches costs nothing. A target's own key is in none of them: kernels add it
as a row-wise product. `&` and `|` only: Triton's interpreter gets `and`, `or` of tensors wrong.
"""

import triton
import triton.language as tl


@triton.jit
def token_ids(index, history_end, SPEC: tl.constexpr):
    """`mask.token_ids`."""
    ids = tl.minimum(index, history_end)
    if SPEC.contextual_len > 1:
        ids = tl.maximum(ids - (SPEC.contextual_len - 1), 0)
    return ids


@triton.jit
def static_end_of(history_end, SPEC: tl.constexpr):
    """`MaskSpec.static_end`: leading tokens that the timestamp mask shows to everybody."""
    if SPEC.realtime_len > 0:
        return tl.maximum(history_end - SPEC.realtime_len, SPEC.contextual_len)
    else:
        return history_end * 0 + SPEC.contextual_len


@triton.jit
def visible(i, j, history_end, SPEC: tl.constexpr, time_i, time_j):
    """`mask.visible`; times int64, read with `timestamp_mask` only."""
    if SPEC.semi_local:
        local = (j <= i) & ((i - j < SPEC.sla_k1) | (j < SPEC.global_end))
        seen = (j < history_end) & (local | (i >= history_end))
    else:
        id_i = token_ids(i, history_end, SPEC)
        id_j = token_ids(j, history_end, SPEC)
        if SPEC.timestamp_mask:
            static_end = static_end_of(history_end, SPEC)
            earlier = (j < history_end) & (i >= static_end) & (time_j < time_i)
            seen = (j < static_end) | earlier
        else:
            seen = id_i > id_j
        if SPEC.max_attn_len > 0:
            near = id_i - id_j <= SPEC.max_attn_len
            if (SPEC.contextual_len > 0) & SPEC.window_keeps_contextual:
                near = near | (j < SPEC.contextual_len)
            if SPEC.full_attn_tail > 0:
                near = near | (i >= history_end - SPEC.full_attn_tail)
            seen = seen & near
        if (SPEC.contextual_len > 0) & (not SPEC.timestamp_mask):
            if SPEC.append_stable:
                seen = seen | ((i < SPEC.contextual_len) & (j < SPEC.contextual_len))
            else:
                seen = seen | ((i < SPEC.contextual_len) & (j < history_end))
    return seen | (i == j)


@triton.jit
def key_range(start, stop, history_end, SPEC: tl.constexpr):
    """Keys of queries [start, stop): extra_stop, extra_full, low, full_low, full_high, high.

    The extra stretch is the prefix that windows do not hide; it starts at 0.
    """
    zero = start * 0
    extra_stop, extra_full, low, full_low = zero, zero, zero, zero
    high = tl.minimum(stop, history_end)
    full_high = tl.minimum(start, history_end)
    if SPEC.timestamp_mask:
        static_end = tl.minimum(static_end_of(history_end, SPEC), history_end)
        high = tl.where(stop <= static_end, static_end, history_end)
        full_high = zero if SPEC.max_attn_len > 0 else static_end
    elif SPEC.semi_local:
        local = start < history_end
        pure = local & (stop <= history_end)
        extra_stop = tl.where(pure, tl.minimum(high, SPEC.global_end), zero)
        extra_full = tl.minimum(extra_stop, start)
        far = tl.minimum(start - SPEC.sla_k1 + 1, start)
        low = tl.where(pure, tl.maximum(far, extra_stop), zero)
        last = tl.minimum(stop, history_end) - SPEC.sla_k1
        full_low = tl.where(local, tl.maximum(last, low), zero)
    else:
        if SPEC.max_attn_len > 0:
            far = full_high - SPEC.max_attn_len
            near = tl.minimum(stop - 1, history_end) - SPEC.max_attn_len
            if SPEC.full_attn_tail > 0:
                tail = history_end - SPEC.full_attn_tail
                far = tl.where(stop > tail, zero, far)
                near = tl.where(start >= tail, zero, near)
            # ids stop at 0: a window that reaches the last contextual token reaches all of them
            low = tl.where(far < SPEC.contextual_len, zero, far)
            full_low = tl.where(near < SPEC.contextual_len, low, tl.maximum(near, low))
        if SPEC.contextual_len > 0:
            contextual = start < SPEC.contextual_len
            if SPEC.append_stable:
                reach = tl.minimum(tl.maximum(high, SPEC.contextual_len), history_end)
            else:
                reach = history_end
            prefix = tl.minimum(history_end, SPEC.contextual_len)
            high = tl.where(contextual, reach, high)
            if SPEC.max_attn_len > 0:
                if SPEC.window_keeps_contextual:
                    extra_stop = tl.where((low > 0) & (start >= SPEC.contextual_len), prefix, zero)
                    extra_full = extra_stop
                low = tl.where(contextual, zero, low)
                full_low = tl.where(contextual, high, full_low)
            else:
                full_high = tl.where(contextual, prefix, full_high)
    return extra_stop, extra_full, low, full_low, full_high, high


@triton.jit
def query_range(start, stop, history_end, length, SPEC: tl.constexpr):
    """Queries of keys [start, stop), stop <= history_end.

    Gives context_stop, extra_start, extra_full, low, full_low, full_high, high. The extra stretch
    are the last queries, which a window may not bind, up to `length`; contextual queries
    [0, context_stop) come before all, always masked.
    """
    zero = start * 0
    context_stop, extra_start, extra_full = zero, length, length
    low, full_low, full_high, high = start, stop, length, length
    if SPEC.timestamp_mask:
        static_end = static_end_of(history_end, SPEC)
        low = tl.where(start >= static_end, static_end, zero)
        full_low = tl.where(stop <= static_end, zero, length)
        if SPEC.max_attn_len > 0:
            full_low = length
    elif SPEC.semi_local:
        bound = start >= SPEC.global_end
        high = tl.where(bound, tl.minimum(history_end, stop - 1 + SPEC.sla_k1), length)
        high = tl.maximum(high, stop)
        full_high = tl.where(stop <= SPEC.global_end, high, start + SPEC.sla_k1)
        extra_start = tl.where(bound, tl.maximum(history_end, high), length)
    else:
        if SPEC.max_attn_len > 0:
            high = tl.minimum(history_end, stop + SPEC.max_attn_len)
            full_high = tl.minimum(history_end, start + SPEC.max_attn_len + 1)
            if SPEC.full_attn_tail > 0:
                extra_start = tl.maximum(history_end - SPEC.full_attn_tail, high)
            else:
                last = history_end - SPEC.max_attn_len  # the first key that targets see
                extra_start = tl.where(stop > last, history_end, length)
                extra_full = tl.where(start >= last, length, zero)
        if SPEC.contextual_len > 0:
            prefix = start < SPEC.contextual_len
            if not SPEC.append_stable:
                context_stop = tl.where(prefix, zero, zero + SPEC.contextual_len)
            low = tl.where(prefix, zero, low)
            high = tl.where(prefix, length, high)
            full = prefix & (stop <= SPEC.contextual_len)
            if SPEC.max_attn_len > 0:
                extra_start = tl.where(prefix, length, extra_start)
                full = full & SPEC.window_keeps_contextual
                full_high = tl.where(prefix, zero, full_high)
            full_low = tl.where(full, zero, full_low)
            full_high = tl.where(full, length, full_high)
    return context_stop, extra_start, extra_full, low, full_low, full_high, high


@triton.jit
def plan(extra_start, extra_stop, extra_full, low, full_low, full_high, high, SIZE: tl.constexpr):
    """Tiles of `SIZE` that cover both stretches, in five numbers for the functions below.

    extra_whole of extra_tiles are full; of main_tiles those in [main_first, main_last) are.
    """
    extra_tiles = tl.cdiv(tl.maximum(extra_stop - extra_start, 0), SIZE)
    extra_whole = tl.maximum(tl.minimum(extra_full, extra_stop) - extra_start, 0) // SIZE
    main_tiles = tl.cdiv(tl.maximum(high - low, 0), SIZE)
    main_first = tl.minimum(tl.cdiv(tl.maximum(full_low - low, 0), SIZE), main_tiles)
    main_last = tl.maximum(tl.minimum(full_high, high) - low, 0) // SIZE
    main_last = tl.maximum(main_last, main_first)
    return extra_tiles, extra_whole, main_tiles, main_first, main_last


@triton.jit
def full_tile(n, extra_start, extra_whole, low, main_first, SIZE: tl.constexpr):
    """First token of the n-th full tile."""
    main = low + (main_first + n - extra_whole) * SIZE
    return tl.where(n < extra_whole, extra_start + n * SIZE, main)


@triton.jit
def masked_tile(
    n, extra_start, extra_stop, extra_whole, extra_tiles, low, high, main_first, main_last,
    SIZE: tl.constexpr,
):  # fmt: skip
    """First token of the n-th masked tile, and the end of the stretch it lies in."""
    rest = extra_tiles - extra_whole
    m = n - rest
    skipped = tl.where(m < main_first, m, m - main_first + main_last)
    start = tl.where(n < rest, extra_start + (extra_whole + n) * SIZE, low + skipped * SIZE)
    return start, tl.where(n < rest, extra_stop, high)
