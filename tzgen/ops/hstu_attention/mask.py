# SPDX-License-Identifier: Apache-2.0
"""Who sees whom in STU attention: the one definition that every implementation uses.

A row of the batch is `[contextual C | history | targets]`; token i of a row with history end h:

    id(i)        = 0 for contextual tokens, i - C + 1 for history, h - C + 1 for every target;
                   min(i, h) where there are no contextual tokens (C = 0)
    i sees j     iff  i == j
                 or   id(i) > id(j)                         causal; targets are never seen by others
                      [and id(i) - id(j) <= max_attn_len    the window, which the contextual prefix
                       or j < C]                            escapes unless told otherwise
                 or   i < C and j < h                       contextual tokens see the whole history
                      [j < C where append_stable]

With `timestamp_mask` (MTGR, Guo et al. 2025) the causal line is replaced: the first s tokens
(contextual, and history but its last `realtime_len` events) are static: seen by everybody, seeing
only each other. A later history token j is seen by i iff time(j) < time(i).

Source: Zhai et al. 2024 (M-FALCON), with the ids of TorchEasyRec's `num_targets` and
`contextual_seq_len`. Spans tell a tiled implementation what it may skip.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskSpec:
    """The mask's constants; what differs per row (lengths, targets, timestamps) is tensors.

    contextual_len             C, tokens at the start of every row that are no events
    max_attn_len               window in tokens; 0 sees everything
    window_keeps_contextual    the contextual prefix stays visible outside the window
    append_stable              nothing looks at later tokens: contextual tokens see each other only
    timestamp_mask             order history by time instead of by place
    realtime_len               with timestamp_mask, history tokens that are not static; 0 = all
    """

    contextual_len: int = 0
    max_attn_len: int = 0
    window_keeps_contextual: bool = True
    append_stable: bool = False
    timestamp_mask: bool = False
    realtime_len: int = 0

    def static_end(self, history_end: int) -> int:
        """Number of leading static tokens of a row whose history ends at `history_end`."""
        if self.realtime_len == 0:
            return self.contextual_len
        return max(history_end - self.realtime_len, self.contextual_len)


def token_ids(index: Tensor, history_end: Tensor, contextual_len: int) -> Tensor:
    """id(i) of the module docstring; `index` and `history_end` are int64 and broadcast."""
    shift = max(contextual_len - 1, 0)
    return torch.minimum(index, history_end).sub(shift).clamp(min=0)


def visible(
    i: Tensor,
    j: Tensor,
    history_end: Tensor,
    spec: MaskSpec,
    time_i: Tensor | None = None,
    time_j: Tensor | None = None,
) -> Tensor:
    """True where token i of a row sees token j of the same row.

    i, j int64 places counted from the start of the row, history_end int64 (length - num_targets),
    time_i, time_j int64 (with `timestamp_mask`); all broadcast to the shape of the result. Places
    past the end of a row are the caller's to drop.
    """
    id_i = token_ids(i, history_end, spec.contextual_len)
    id_j = token_ids(j, history_end, spec.contextual_len)
    contextual = spec.contextual_len
    if spec.timestamp_mask:
        if time_i is None or time_j is None:
            raise ValueError("timestamp_mask needs the timestamps of the tokens")
        static_end = history_end - spec.realtime_len if spec.realtime_len else history_end * 0
        static_end = static_end.clamp(min=contextual)
        earlier = (j < history_end) & (i >= static_end) & (time_j < time_i)
        seen = (j < static_end) | earlier
    else:
        seen = id_i > id_j
    if spec.max_attn_len > 0:
        near = id_i - id_j <= spec.max_attn_len
        if contextual > 0 and spec.window_keeps_contextual:
            near = near | (j < contextual)
        seen = seen & near
    if contextual > 0 and not spec.timestamp_mask:
        limit = contextual if spec.append_stable else history_end
        seen = seen | ((i < contextual) & (j < limit))
    return seen | (i == j)


def dense_mask(
    length: int, num_targets: int, spec: MaskSpec, timestamps: Tensor | None = None
) -> Tensor:
    """The mask of one row, bool [length, length]; `timestamps` int64 [length]."""
    device = None if timestamps is None else timestamps.device
    index = torch.arange(length, device=device)
    end = torch.tensor(length - num_targets, device=device)
    time_i = None if timestamps is None else timestamps[:, None]
    time_j = None if timestamps is None else timestamps[None, :]
    return visible(index[:, None], index[None, :], end, spec, time_i, time_j)


@dataclass(frozen=True)
class Span:
    """Keys [start, stop) of a block of queries; `full` says that every query sees every key."""

    start: int
    stop: int
    full: bool


@dataclass(frozen=True)
class Block:
    """Queries [start, stop) of a row: all contextual, all history or all targets.

    Keys outside `spans` are invisible, but for a target's own (`own_key`).
    """

    start: int
    stop: int
    spans: tuple[Span, ...]
    own_key: bool


def blocks(length: int, num_targets: int, spec: MaskSpec, rows: int, keys: int) -> list[Block]:
    """Cut one row's mask into blocks of at most `rows` queries and spans of at most `keys` keys."""
    end, contextual = length - num_targets, spec.contextual_len
    out = []
    for kind, low, high in (
        ("contextual", 0, contextual),
        ("history", contextual, end),
        ("targets", end, length),
    ):
        for start in range(low, high, rows):
            stop = min(start + rows, high)
            spans = [
                Span(at, min(at + keys, last), full)
                for first, last, full in _ranges(kind, start, stop, end, spec)
                for at in range(first, last, keys)
            ]
            out.append(Block(start, stop, tuple(spans), own_key=kind == "targets"))
    return out


def _ranges(
    kind: str, start: int, stop: int, end: int, spec: MaskSpec
) -> list[tuple[int, int, bool]]:
    """Key ranges (first, last, full) that queries [start, stop) can see; disjoint, ascending."""
    contextual, window = spec.contextual_len, spec.max_attn_len
    if spec.timestamp_mask:
        static = spec.static_end(end)
        ranges = [(0, static, window == 0)]
        return ranges if kind == "contextual" else [*ranges, (static, end, False)]
    if kind == "contextual":
        return [(0, contextual if spec.append_stable else end, True)]
    first_query, last_query = (end, end) if kind == "targets" else (start, stop - 1)
    prefix_full = window == 0 or spec.window_keeps_contextual
    prefix_full = prefix_full or last_query - contextual + 1 <= window
    prefix_seen = prefix_full or first_query - contextual + 1 <= window
    ranges = [(0, contextual, prefix_full)] if contextual and prefix_seen else []
    before = end if kind == "targets" else start
    near = max(contextual, last_query - window) if window else contextual
    far = max(contextual, first_query - window) if window else contextual
    if far < min(near, before):
        ranges.append((far, min(near, before), False))
    if near < before:
        ranges.append((near, before, True))
    if kind == "history":
        ranges.append((start, stop, False))
    return ranges
