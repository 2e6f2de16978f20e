# SPDX-License-Identifier: Apache-2.0
"""XXH64 of many strings at once, over Arrow buffers, with numpy alone.

The algorithm is the public XXH64 specification (github.com/Cyan4973/xxHash), seed 0, of the UTF-8
bytes. Strings of 32 bytes and more run their 32-byte stripes together, longest first, so that the
active ones are a prefix; what is left of every string (0 to 31 bytes) is grouped by its length, so
that no lane is masked and nothing outside a string is read. T strings.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_ACCUMULATORS = ((0x9E3779B185EBCA87 + 0xC2B2AE3D27D4EB4F) % 2**64, int(_P2), 0, 2**64 - int(_P1))
_ROTATIONS = (1, 7, 12, 18)
_BLOCK = 16384  # strings per pass: the working set of a block stays in the second-level cache

_ZERO = np.uint64(0)
_TENS = np.array([10**power for power in range(1, 20)], np.uint64)
# The four decimal digits of 0..9999 as little-endian text.
_FOUR = np.bitwise_or.reduce(
    [
        (np.arange(10_000, dtype=np.uint64) // np.uint64(10**p) % np.uint64(10) + np.uint64(48))
        << np.uint64(8 * (3 - p))
        for p in range(4)
    ]
)

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]


def hash_strings(strings: pa.Array) -> U64:
    """uint64 [T]: XXH64 of each string; string or large_string array without nulls."""
    if pa.types.is_large_string(strings.type) or pa.types.is_large_binary(strings.type):
        offset_type = "<i8"
    else:
        offset_type = "<i4"
    _, offsets_buffer, data_buffer = strings.buffers()
    if len(strings) == 0:
        return np.empty(0, np.uint64)
    first = strings.offset
    offsets = np.frombuffer(offsets_buffer, offset_type)[first : first + len(strings) + 1]
    offsets = offsets.astype(np.int64)
    data = np.frombuffer(b"" if data_buffer is None else data_buffer, np.uint8)
    out = np.empty(len(strings), np.uint64)
    for start in range(0, len(strings), _BLOCK):
        stop = min(start + _BLOCK, len(strings))
        block = offsets[start : stop + 1]
        out[start:stop] = _hash_block(data, block[:-1], block[1:] - block[:-1])
    return out


def hash_integers(values: NDArray[np.integer]) -> U64:
    """uint64 [T]: XXH64 of the decimal text of each integer.

    Digits come four at a time from a table, without making the text; negative integers are rare
    enough to be written out.
    """
    out = np.empty(values.size, np.uint64)
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        wide = block.astype(np.uint64)
        digits = np.ones(wide.size, np.uint8)
        for power in _TENS[: np.searchsorted(_TENS, wide.max(), side="right")]:
            digits += wide >= power
        if block.dtype.kind == "i":
            digits[block < 0] = 0
        order = np.argsort(digits, kind="stable")
        stop = 0
        for count, size in enumerate(np.bincount(digits)):
            if not size:
                continue
            first, stop = stop, stop + int(size)
            chosen = order[first:stop]
            if count:
                hashes = _hash_digits(wide[chosen], count)
            else:
                hashes = hash_strings(pc.cast(pa.array(block[chosen]), pa.string()))
            out[start + chosen] = hashes
    return out


def remainder(hashes: U64, divisor: int) -> I64:
    """`hashes % divisor` (unsigned) as int64; a division by a scalar is much faster than `%`."""
    if divisor & (divisor - 1) == 0:
        return (hashes & np.uint64(divisor - 1)).view(np.int64)
    quotient = hashes // np.uint64(divisor)
    quotient *= np.uint64(divisor)
    return (hashes - quotient).view(np.int64)


def _hash_digits(left: U64, count: int) -> U64:
    """XXH64 of the texts of integers that all have `count` digits; `left` is overwritten."""
    state = np.full(left.size, _P5 + np.uint64(count))

    def leading(digits: int) -> U64:
        """Takes the leading digits off `left`."""
        nonlocal count, left
        count -= digits
        power = np.uint64(10**count)
        head = left // power
        left -= head * power
        return head

    while count >= 8:
        lane = _FOUR[leading(4)]
        state = _take_8(state, lane | (_FOUR[leading(4)] << np.uint64(32)))
    if count >= 4:
        state = _take_4(state, _FOUR[leading(4)])
    while count:
        state = _take_1(state, leading(1) + np.uint64(ord("0")))
    return _mix(state)


def _hash_block(data: NDArray[np.uint8], starts: I64, lengths: I64) -> U64:
    state = np.full(lengths.size, _P5)
    longest = int(lengths.max())
    if longest >= 32:
        long = np.flatnonzero(lengths >= 32)
        state[long] = _stripes(data, starts[long], lengths[long])
    state += lengths.view(np.uint64)
    tails = lengths & 31
    tail_starts = starts + (lengths - tails)
    order = np.argsort(tails.astype(np.uint8), kind="stable")
    counts = np.bincount(tails, minlength=1)
    out = np.empty_like(state)
    stop = 0
    for tail in np.flatnonzero(counts):
        start, stop = stop, stop + int(counts[tail])
        chosen = order[start:stop]
        out[chosen] = _finish(data, tail_starts[chosen], state[chosen], int(tail))
    return out


def _lanes(data: NDArray[np.uint8], dtype: str) -> NDArray[np.unsignedinteger]:
    """The buffer read as an unaligned little-endian integer starting at every byte."""
    width = np.dtype(dtype).itemsize
    count = data.size - width + 1
    return np.ndarray((count,), dtype=dtype, buffer=data, strides=(1,))


def _rotate(value: U64, bits: int) -> U64:
    """Left, in place."""
    high = value << np.uint64(bits)
    value >>= np.uint64(64 - bits)
    value |= high
    return value


def _round(state: U64 | np.uint64, lane: U64) -> U64:
    """One XXH64 round; `lane` is overwritten."""
    lane *= _P2
    lane += state
    lane = _rotate(lane, 31)
    lane *= _P1
    return lane


def _stripes(data: NDArray[np.uint8], starts: I64, lengths: I64) -> U64:
    """The four accumulators over all 32-byte stripes, merged into one state per string."""
    stripes = lengths // 32
    order = np.argsort(-stripes, kind="stable")
    starts, stripes = starts[order], stripes[order]
    active = np.searchsorted(-stripes, -np.arange(int(stripes[0])), side="left")
    lanes = _lanes(data, "<u8")
    accumulators = [np.full(starts.size, value, np.uint64) for value in _ACCUMULATORS]
    for stripe, count in enumerate(active):
        at = starts[:count] + 32 * stripe
        for index, accumulator in enumerate(accumulators):
            lane = lanes[at + 8 * index]
            accumulator[:count] = _round(accumulator[:count], lane)
    merged = sum(
        (_rotate(a.copy(), r) for a, r in zip(accumulators, _ROTATIONS, strict=True)), _ZERO
    )
    for accumulator in accumulators:
        merged ^= _round(np.uint64(0), accumulator)
        merged *= _P1
        merged += _P4
    out = np.empty_like(merged)
    out[order] = merged
    return out


def _finish(data: NDArray[np.uint8], starts: I64, state: U64, tail: int) -> U64:
    """Take in the last `tail` (0 to 31) bytes, the same number for every string, and mix."""
    at = starts
    for _ in range(tail // 8):
        state = _take_8(state, _lanes(data, "<u8")[at])
        at = at + 8
    if tail & 4:
        state = _take_4(state, _lanes(data, "<u4")[at].astype(np.uint64))
        at = at + 4
    for offset in range(tail & 3):
        state = _take_1(state, data[at + offset].astype(np.uint64))
    return _mix(state)


def _take_8(state: U64, lane: U64) -> U64:
    state ^= _round(_ZERO, lane)
    state = _rotate(state, 27)
    state *= _P1
    state += _P4
    return state


def _take_4(state: U64, lane: U64) -> U64:
    lane *= _P1
    state ^= lane
    state = _rotate(state, 23)
    state *= _P2
    state += _P3
    return state


def _take_1(state: U64, lane: U64) -> U64:
    lane *= _P5
    state ^= lane
    state = _rotate(state, 11)
    state *= _P1
    return state


def _mix(state: U64) -> U64:
    state ^= state >> np.uint64(33)
    state *= _P2
    state ^= state >> np.uint64(29)
    state *= _P3
    state ^= state >> np.uint64(32)
    return state
