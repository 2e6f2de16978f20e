# SPDX-License-Identifier: Apache-2.0
"""Encoders that pool a history into one vector: DIN and its kin, on ragged rows without padding.

B rows, L steps of all rows, D width of a step, N queries (one a row, or one a candidate), P pairs
(query, step of the query's row). Formulas as in TorchEasyRec's sequence encoders; where a history
is cut, means divide by the steps kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SequenceEncoder(nn.Module):
    """Base: `output_dim` and whether the result has one vector a query or one a row."""

    per_query = True

    def __init__(self, *, sequence_dim: int, output_dim: int, max_seq_length: int = 0) -> None:
        super().__init__()
        self.sequence_dim, self.output_dim = sequence_dim, output_dim
        self.max_seq_length = max_seq_length

    def forward(
        self,
        sequence: Tensor,
        lengths: Tensor,
        *,
        max_len: int,
        query: Tensor | None = None,
        query_rows: Tensor | None = None,
    ) -> Tensor:
        """sequence [L, D], lengths int64 [B]; max_len the longest row.

        query [N, Dq], query_rows int64 [N]: the row whose history each query attends to; without
        it N = B. Gives [N, output_dim], or [B, output_dim] where `per_query` is False. An empty
        history gives zeros.
        """
        if 0 < self.max_seq_length < max_len:
            steps = steps_in_row(lengths, sequence.size(0))
            sequence = sequence[steps < self.max_seq_length]
            lengths, max_len = lengths.clamp(max=self.max_seq_length), self.max_seq_length
        if not self.per_query:
            return self.encode(sequence, lengths, max_len)
        if query is None:
            raise ValueError(f"{type(self).__name__} needs a query")
        query = F.pad(query, (0, self.sequence_dim - query.size(1)))
        pairs = make_pairs(lengths, sequence.size(0), query_rows)
        return self.attend(sequence, query, *pairs)

    def encode(self, sequence: Tensor, lengths: Tensor, max_len: int) -> Tensor:
        """Encoders without a query."""
        raise NotImplementedError

    def attend(self, sequence: Tensor, query: Tensor, steps: Tensor, owner: Tensor) -> Tensor:
        """Encoders with a query [N, D]; steps, owner int64 [P]: step and query of each pair."""
        raise NotImplementedError


class PoolingEncoder(SequenceEncoder):
    """Sum or mean of the steps."""

    per_query = False

    def __init__(
        self, *, sequence_dim: int, pooling_type: str = "mean", max_seq_length: int = 0
    ) -> None:
        super().__init__(
            sequence_dim=sequence_dim, output_dim=sequence_dim, max_seq_length=max_seq_length
        )
        if pooling_type not in ("sum", "mean"):
            raise ValueError(f"pooling_type is 'sum' or 'mean'; got {pooling_type!r}")
        self.mean = pooling_type == "mean"

    def encode(self, sequence: Tensor, lengths: Tensor, max_len: int) -> Tensor:
        rows = row_of_step(lengths, sequence.size(0))
        total = sequence.new_zeros(lengths.size(0), sequence.size(1)).index_add(0, rows, sequence)
        return total / lengths.clamp(min=1).unsqueeze(1) if self.mean else total


class SimpleAttention(SequenceEncoder):
    """softmax_j(<query, step_j>) weighs the sum of steps."""

    def __init__(self, *, sequence_dim: int, query_dim: int, max_seq_length: int = 0) -> None:
        super().__init__(
            sequence_dim=sequence_dim, output_dim=sequence_dim, max_seq_length=max_seq_length
        )
        check_query(query_dim, sequence_dim)

    def attend(self, sequence: Tensor, query: Tensor, steps: Tensor, owner: Tensor) -> Tensor:
        events = sequence.index_select(0, steps)
        scores = (query.index_select(0, owner) * events).sum(1)
        return weighted_sum(segment_softmax(scores, owner, query.size(0)), events, owner, query)


class DinEncoder(SequenceEncoder):
    """Deep Interest Network (Zhou et al. 2018) with TorchEasyRec's softmax over the scores.

    `scorer` maps [query, step, query - step, query * step] [P, 4 D] to [P, 1]. A query narrower
    than a step is padded with zeros.
    """

    def __init__(
        self, *, sequence_dim: int, query_dim: int, scorer: nn.Module, max_seq_length: int = 0
    ) -> None:
        super().__init__(
            sequence_dim=sequence_dim, output_dim=sequence_dim, max_seq_length=max_seq_length
        )
        check_query(query_dim, sequence_dim)
        self.scorer = scorer

    def attend(self, sequence: Tensor, query: Tensor, steps: Tensor, owner: Tensor) -> Tensor:
        events, queries = sequence.index_select(0, steps), query.index_select(0, owner)
        features = torch.cat([queries, events, queries - events, queries * events], dim=1)
        scores = self.scorer(features).squeeze(1)
        return weighted_sum(segment_softmax(scores, owner, query.size(0)), events, owner, query)


class MultiWindowDinEncoder(SequenceEncoder):
    """DIN over consecutive windows of steps: the mean of scored steps in each, then the query.

    `scorer` maps [step, query * step, query] [P, 3 D] to [P, 1]; PReLU, no softmax. Steps beyond
    the last window do not count. output_dim = D * (windows + 1).
    """

    window_ends: Tensor

    def __init__(
        self, *, sequence_dim: int, query_dim: int, scorer: nn.Module, windows_len: Sequence[int]
    ) -> None:
        super().__init__(
            sequence_dim=sequence_dim,
            output_dim=sequence_dim * (len(windows_len) + 1),
            max_seq_length=sum(windows_len),
        )
        check_query(query_dim, sequence_dim)
        self.scorer, self.active = scorer, nn.PReLU()
        ends = torch.cumsum(torch.tensor(list(windows_len)), 0)
        self.register_buffer("window_ends", ends, persistent=False)

    def attend(self, sequence: Tensor, query: Tensor, steps: Tensor, owner: Tensor) -> Tensor:
        num_queries, num_windows = query.size(0), self.window_ends.numel()
        events, queries = sequence.index_select(0, steps), query.index_select(0, owner)
        scores = self.active(self.scorer(torch.cat([events, queries * events, queries], dim=1)))
        counts = torch.bincount(owner, minlength=num_queries)
        place = steps_in_row(counts, owner.size(0))
        cell = owner * num_windows + torch.bucketize(place, self.window_ends, right=True)
        total = events.new_zeros(num_queries * num_windows, events.size(1))
        total = total.index_add(0, cell, scores * events)
        filled = torch.bincount(cell, minlength=num_queries * num_windows).clamp(min=1)
        windows = (total / filled.unsqueeze(1)).reshape(num_queries, num_windows * events.size(1))
        return torch.cat([windows, query], dim=1)


class SelfAttentionEncoder(SequenceEncoder):
    """Multi-head self-attention over the steps, then their mean. Pads to the longest row."""

    per_query = False

    def __init__(
        self,
        *,
        sequence_dim: int,
        multihead_attn_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        max_seq_length: int = 0,
    ) -> None:
        super().__init__(
            sequence_dim=sequence_dim, output_dim=multihead_attn_dim, max_seq_length=max_seq_length
        )
        if multihead_attn_dim % num_heads:
            raise ValueError(
                f"multihead_attn_dim {multihead_attn_dim} is no multiple of num_heads {num_heads}"
            )
        self.query = nn.Linear(sequence_dim, multihead_attn_dim)
        self.key = nn.Linear(sequence_dim, multihead_attn_dim)
        self.value = nn.Linear(sequence_dim, multihead_attn_dim)
        self.out = nn.Linear(multihead_attn_dim, multihead_attn_dim)
        self.num_heads, self.dropout = num_heads, dropout

    def encode(self, sequence: Tensor, lengths: Tensor, max_len: int) -> Tensor:
        rows, places = row_of_step(lengths, sequence.size(0)), steps_in_row(lengths, len(sequence))
        width = max(max_len, 1)
        padded = sequence.new_zeros(lengths.size(0), width, sequence.size(1))
        padded = padded.index_put((rows, places), sequence)
        absent = torch.arange(width, device=lengths.device) >= lengths.unsqueeze(1)
        # a row without steps would be NaN: let it see its first padding, its outputs are not read
        masked = absent & ~((lengths == 0).unsqueeze(1) & (absent.cumsum(1) == 1))
        query, key, value = (
            layer(padded).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=~masked[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        mixed = self.out(mixed.transpose(1, 2).flatten(2))
        total = mixed.masked_fill(absent.unsqueeze(2), 0.0).sum(1)
        return total / lengths.clamp(min=1).unsqueeze(1)


def row_of_step(lengths: Tensor, num_steps: int) -> Tensor:
    """int64 [L]: the row each step belongs to."""
    rows = torch.arange(lengths.size(0), device=lengths.device)
    return torch.repeat_interleave(rows, lengths, output_size=num_steps)


def steps_in_row(lengths: Tensor, num_steps: int) -> Tensor:
    """int64 [L]: 0, 1, ... within each row."""
    starts = torch.cumsum(lengths, 0) - lengths
    rows = row_of_step(lengths, num_steps)
    return torch.arange(num_steps, device=lengths.device) - starts.index_select(0, rows)


def make_pairs(lengths: Tensor, num_steps: int, query_rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """(step, query) int64 [P] of every query with every step of its row.

    With one query a row P = L and no step is copied; else the number of pairs is asked from the
    device, the one host sync of these encoders.
    """
    if query_rows is None:
        steps = torch.arange(num_steps, device=lengths.device)
        return steps, row_of_step(lengths, num_steps)
    per_query = lengths.index_select(0, query_rows)
    num_pairs = int(per_query.sum())
    owner = row_of_step(per_query, num_pairs)
    starts = (torch.cumsum(lengths, 0) - lengths).index_select(0, query_rows)
    return starts.index_select(0, owner) + steps_in_row(per_query, num_pairs), owner


def segment_softmax(scores: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Softmax of scores [P] within each segment."""
    top = scores.new_full((num_segments,), -torch.inf)
    top = top.scatter_reduce(0, segment, scores.detach(), "amax")
    powers = torch.exp(scores - top.index_select(0, segment))
    total = powers.new_zeros(num_segments).index_add(0, segment, powers)
    return powers / total.index_select(0, segment)


def weighted_sum(shares: Tensor, events: Tensor, owner: Tensor, query: Tensor) -> Tensor:
    """sum of shares [P] * events [P, D] per owner -> [N, D]."""
    zeros = events.new_zeros(query.size(0), events.size(1))
    return zeros.index_add(0, owner, shares.unsqueeze(1) * events)


def check_query(query_dim: int, sequence_dim: int) -> None:
    if not 0 < query_dim <= sequence_dim:
        raise ValueError(
            f"the query must have 1 to {sequence_dim} values, as many as a step at most; "
            f"it has {query_dim}"
        )
