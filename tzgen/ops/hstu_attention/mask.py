# SPDX-License-Identifier: Apache-2.0
"""Who sees whom in STU attention: the one definition that every implementation uses.

A row of the batch is `[contextual C | history | targets]`; token i of a row with history end h:

    id(i)        = 0 for contextual tokens, i - C + 1 for history, h - C + 1 for every target;
                   min(i, h) where there are no contextual tokens (C = 0)
    i sees j     iff  i == j
                 or   id(i) > id(j)                         causal; targets are never seen by others
                      [and id(i) - id(j) <= max_attn_len    the window, which the contextual prefix
                       or j < C                             escapes unless told otherwise, and
                       or i >= h - full_attn_tail]          the last events and targets with a tail
                 or   i < C and j < h                       contextual tokens see the whole history
                      [j < C where append_stable]

With `timestamp_mask` (MTGR, Guo et al. 2025) the causal line is replaced: the first s tokens
(contextual, and history but its last `realtime_len` events) are static: seen by everybody, seeing
only each other. A later history token j is seen by i iff time(j) < time(i).

Semi-local attention (`sla_k1`, `sla_k2`) replaces the causal, window and contextual lines:

    i < h        j <= i and (i - j < sla_k1 or j < max(sla_k2, C))      contextual tokens included
    targets      j < h

Source: Zhai et al. 2024 (M-FALCON), with the ids of TorchEasyRec's `num_targets` and
`contextual_seq_len`; the tail is Meta's `min_full_attn_seq_len`, semi-local attention is
TorchEasyRec's. Two differences, both because i == j holds everywhere here: its targets do not see
themselves under semi-local attention, nor does an event with sla_k1 = 0. As there, distances of
semi-local attention are places, not ids, and contextual tokens see only earlier ones.
Spans tell a tiled implementation what it may skip.
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
    sla_k1                     semi-local attention: places an event sees back, its own included
    sla_k2                     semi-local attention: leading tokens all see; both 0 = off
    full_attn_tail             with max_attn_len: last events that ignore it, and targets then
    """

    contextual_len: int = 0
    max_attn_len: int = 0
    window_keeps_contextual: bool = True
    append_stable: bool = False
    timestamp_mask: bool = False
    realtime_len: int = 0
    sla_k1: int = 0
    sla_k2: int = 0
    full_attn_tail: int = 0

    def __post_init__(self) -> None:
        if self.semi_local and (self.max_attn_len > 0 or self.timestamp_mask):
            raise ValueError(
                f"semi-local attention (sla_k1={self.sla_k1}, sla_k2={self.sla_k2}) replaces the "
                "causal mask: it does not combine with max_attn_len or timestamp_mask; set one"
            )
        if self.full_attn_tail > 0 and self.max_attn_len <= 0:
            raise ValueError(
                f"full_attn_tail={self.full_attn_tail} exempts tokens from a window, and there is "
                "none: set max_attn_len too"
            )

    @property
    def semi_local(self) -> bool:
        """Whether semi-local attention is on."""
        return self.sla_k1 > 0 or self.sla_k2 > 0

    @property
    def global_end(self) -> int:
        """Leading tokens that semi-local attention shows to everybody."""
        return max(self.sla_k2, self.contextual_len)

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
    if spec.semi_local:
        return _visible_semi_local(i, j, history_end, spec)
    contextual = spec.contextual_len
    id_i = token_ids(i, history_end, contextual)
    id_j = token_ids(j, history_end, contextual)
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
        if spec.full_attn_tail > 0:
            near = near | (i >= history_end - spec.full_attn_tail)
        seen = seen & near
    if contextual > 0 and not spec.timestamp_mask:
        limit = contextual if spec.append_stable else history_end
        seen = seen | ((i < contextual) & (j < limit))
    return seen | (i == j)


def _visible_semi_local(i: Tensor, j: Tensor, history_end: Tensor, spec: MaskSpec) -> Tensor:
    local = (j <= i) & ((i - j < spec.sla_k1) | (j < spec.global_end))
    seen = (j < history_end) & (local | (i >= history_end))
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
    """Queries [start, stop) of a row: all contextual, all history, all its tail or all targets.

    Keys outside `spans` are invisible, but for a target's own (`own_key`).
    """

    start: int
    stop: int
    spans: tuple[Span, ...]
    own_key: bool


def blocks(length: int, num_targets: int, spec: MaskSpec, rows: int, keys: int) -> list[Block]:
    """Cut one row's mask into blocks of at most `rows` queries and spans of at most `keys` keys."""
    end, contextual = length - num_targets, spec.contextual_len
    tail = max(contextual, end - spec.full_attn_tail)
    out = []
    for kind, low, high in (
        ("contextual", 0, contextual),
        ("history", contextual, tail),
        ("tail", tail, end),
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


Range = tuple[int, int, bool]  # first and last + 1 of a stretch of keys; whether all see all of it


def _ranges(kind: str, start: int, stop: int, end: int, spec: MaskSpec) -> list[Range]:
    """What queries [start, stop) can see: disjoint, ascending."""
    if spec.semi_local:
        return [(0, end, True)] if kind == "targets" else _semi_local_ranges(start, stop, spec)
    contextual = spec.contextual_len
    window = 0 if spec.full_attn_tail and kind in ("tail", "targets") else spec.max_attn_len
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
    ranges += _stretches(far, near, before)
    if kind != "targets":
        ranges.append((start, stop, False))
    return ranges


def _semi_local_ranges(start: int, stop: int, spec: MaskSpec) -> list[Range]:
    """The same for contextual and history queries of semi-local attention."""
    prefix = min(spec.global_end, start)
    near = max(prefix, stop - spec.sla_k1)  # later keys before `start` are local to every query
    far = max(prefix, start - spec.sla_k1 + 1)
    ranges = [(0, prefix, True)] if prefix else []
    return [*ranges, *_stretches(far, near, start), (start, stop, False)]


def _stretches(far: int, near: int, before: int) -> list[Range]:
    """Keys [far, before), of which those from `near` on are seen by all queries."""
    ranges = []
    if far < min(near, before):
        ranges.append((far, min(near, before), False))
    if near < before:
        ranges.append((near, before, True))
    return ranges
