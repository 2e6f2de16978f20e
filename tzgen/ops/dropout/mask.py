# SPDX-License-Identifier: Apache-2.0
"""Which elements dropout keeps: a function of (seed, row, column), so that no mask is ever stored.

    mix(h)  = the 32-bit finaliser  h ^= h >> 16; h *= A; h ^= h >> 15; h *= B; h ^= h >> 15
    key(r)  = mix(mix(low(seed) ^ r) ^ high(seed))
    kept    = mix(key(r) ^ column * GOLDEN) >= ratio * 2^32          all modulo 2^32, unsigned

Forward and backward, one process and the next, PyTorch, C++ and Triton compute the same bits. A row
may be dropped alone: its bits do not depend on how many rows are processed together. Multipliers:
https://github.com/skeeto/hash-prospector (public domain), found by search for low bias.
"""

from __future__ import annotations

import torch
from torch import Tensor

A, B, GOLDEN = 0x21F0AAAD, 0xD35A2D97, 0x9E3779B9
WORD = 1 << 32


def draw_seed() -> Tensor:
    """int64 [] on the CPU from torch's default generator, once a call: `torch.manual_seed` rules
    what is dropped, and a resumed run drops the same."""
    return torch.randint(0, (1 << 63) - 1, (), dtype=torch.int64)


def threshold(ratio: float) -> int:
    """Words below it are dropped."""
    return min(round(ratio * WORD), WORD - 1)


def keep_scale(ratio: float) -> float:
    """What kept elements are multiplied by."""
    return WORD / (WORD - threshold(ratio))


def row_keys(seed: int, first_row: int, rows: int, device: torch.device) -> Tensor:
    """int32 [rows]: the bits of key(r)."""
    index = torch.arange(first_row, first_row + rows, device=device).to(torch.int32)
    return _mix(_mix(index ^ signed(seed)) ^ signed(seed >> 32))


def keep_mask(
    seed: int, first_row: int, rows: int, columns: int, ratio: float, device: torch.device
) -> Tensor:
    """bool [rows, columns], True where kept."""
    column = torch.arange(columns, device=device).to(torch.int32) * signed(GOLDEN)
    words = row_keys(seed, first_row, rows, device)[:, None] ^ column
    # signed comparison of the words with their top bit flipped is the unsigned one
    return (_mix(words) ^ signed(1 << 31)) >= signed(threshold(ratio) ^ (1 << 31))


def _mix(words: Tensor) -> Tensor:
    """The finaliser, in place on int32; products wrap."""
    shifted = torch.empty(words.shape, dtype=words.dtype, device=words.device)

    def fold(bits: int) -> None:
        torch.bitwise_right_shift(words, bits, out=shifted)  # arithmetic: cut the copies of the top
        words.bitwise_xor_(shifted.bitwise_and_((1 << (32 - bits)) - 1))

    fold(16)
    words.mul_(signed(A))
    fold(15)
    words.mul_(signed(B))
    fold(15)
    return words


def signed(word: int) -> int:
    """The int32 with the low 32 bits of `word`."""
    return ((word & (WORD - 1)) ^ (1 << 31)) - (1 << 31)
