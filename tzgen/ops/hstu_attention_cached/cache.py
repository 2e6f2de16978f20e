# SPDX-License-Identifier: Apache-2.0
"""What cached STU attention is given beside q, k, v and a `Call`: the cache of one layer.

B rows, Lc cached tokens of all rows, P pages, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class CachedKV:
    """Keys and values of the tokens that come before the new ones, for one layer.

    Contiguous (`table` None): k [Lc, H, attention_dim], v [Lc, H, hidden_dim], the rows one after
    another, timestamps int64 [Lc]. Paged: k [P, page_size, H, attention_dim], v [P, page_size, H,
    hidden_dim], timestamps int64 [P, page_size]; token t of row b is k[table[b, t // page_size],
    t % page_size], table int64 [B, max_pages], whose entries past the last page are not read.

    lengths int64 [B]: cached tokens of each row, 0 allowed. timestamps: where the mask or the bias
    reads time, else None. max_len: at least the longest cached row, a host number.
    """

    k: Tensor
    v: Tensor
    lengths: Tensor
    max_len: int
    table: Tensor | None = None
    timestamps: Tensor | None = None

    @property
    def page_size(self) -> int:
        """Tokens of a page; 0 where the cache is contiguous."""
        return 0 if self.table is None else self.k.size(1)
