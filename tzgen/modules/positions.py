# SPDX-License-Identifier: Apache-2.0
"""Position and age embeddings, added to the scaled tokens: x * sqrt(D) + pos[...] + time[...].

With h = the row's tokens before its candidates, C contextual tokens, P position buckets:

    without time encoding   pos[min(i, h, P - 1)]                       forward; no time term
    with time encoding      pos[min(C + max(h - i, 0), P - 1)]          backward; contextual tokens
                                                                        have places 0 .. C - 1
                            time[min(f((t_query - t_i) / increment), K)]    f = sqrt or log

so that all candidates of a row share one position. Times are subtracted as int64: float32 steps by
128 s at today's epoch. Source: generative-recommenders and TorchEasyRec, HSTUPositionalEncoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from tzgen.modules.sequence import TokenSequence


@dataclass(frozen=True)
class GRPositionalEncoderOptions:
    """The proto GRPositionalEncoder."""

    num_position_buckets: int
    num_time_buckets: int | None
    use_time_encoding: bool
    time_bucket_fn: str
    time_bucket_increments: float


class HSTUPositionalEncoder(nn.Module):
    """Tables of [buckets, D], uniform in +- 1 / sqrt(buckets)."""

    def __init__(self, options: GRPositionalEncoderOptions, *, embedding_dim: int) -> None:
        super().__init__()
        if options.time_bucket_fn not in ("sqrt", "log"):
            raise ValueError(f"time_bucket_fn is 'sqrt' or 'log'; got {options.time_bucket_fn!r}")
        self.options = options
        self.scale = sqrt(embedding_dim)
        self.position = _table(options.num_position_buckets, 0, embedding_dim)
        self.time: nn.Parameter | None = None
        if options.use_time_encoding:
            if not options.num_time_buckets:
                raise ValueError("use_time_encoding needs num_time_buckets")
            self.time = _table(options.num_time_buckets, 1, embedding_dim)

    def forward(self, tokens: TokenSequence) -> Tensor:
        """The new x, [L, D]."""
        x = tokens.x * self.scale
        x = x + self.position.index_select(0, self._positions(tokens)).to(x.dtype)
        if self.time is not None:
            x = x + self.time.index_select(0, self._ages(tokens)).to(x.dtype)
        return x

    def _positions(self, tokens: TokenSequence) -> Tensor:
        end = (tokens.lengths - tokens.num_targets).index_select(0, tokens.rows)
        last = self.position.size(0) - 1
        if self.time is None:
            return torch.minimum(tokens.places, end).clamp(max=last)
        backward = (end - tokens.places).clamp(min=0) + tokens.contextual_len
        contextual = tokens.places < tokens.contextual_len
        return torch.where(contextual, tokens.places, backward).clamp(max=last)

    def _ages(self, tokens: TokenSequence) -> Tensor:
        age = tokens.query_time.index_select(0, tokens.rows) - tokens.timestamps
        scaled = age.clamp(min=0).to(torch.float32) / self.options.time_bucket_increments
        if self.options.time_bucket_fn == "log":
            compressed = scaled.clamp(min=1.0).log()  # ages below one increment share bucket 0
        else:
            compressed = scaled.sqrt()
        return compressed.to(torch.int64).clamp(max=self.options.num_time_buckets or 0)


def _table(buckets: int, extra: int, dim: int) -> nn.Parameter:
    bound = sqrt(1.0 / buckets)
    return nn.Parameter(torch.empty(buckets + extra, dim).uniform_(-bound, bound))
