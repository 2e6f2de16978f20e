# SPDX-License-Identifier: Apache-2.0
"""What HSTU modules hand to each other: events before, tokens after the preprocessor.

B rows, E history events, T candidates, L tokens, C contextual tokens of a row, D model width.
A row's tokens are `[contextual | history | candidates]`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tzgen.ops import jagged

CONTEXTUAL, HISTORY, CANDIDATE = 0, 1, 2  # domains of tokens
NUM_DOMAINS = 3


@dataclass(frozen=True)
class Events:
    """One batch of rows, oldest event first; lengths and times are int64.

    uih [E, Du], uih_lengths [B], uih_timestamps [E]; candidates [T, Dc] (None in retrieval),
    num_candidates [B], candidate_timestamps [T] (the times of the requests); contextual [B, C, Dx]
    or None; actions int64 [E] bitmasks or None; watchtimes [E] or None. query_time [B]: what ages
    are measured from. max_*: host numbers, at least the longest row.
    """

    uih: Tensor
    uih_lengths: Tensor
    uih_timestamps: Tensor
    num_candidates: Tensor
    candidate_timestamps: Tensor
    query_time: Tensor
    max_uih_len: int
    max_candidates: int
    candidates: Tensor | None = None
    contextual: Tensor | None = None
    actions: Tensor | None = None
    watchtimes: Tensor | None = None


@dataclass(frozen=True)
class TokenSequence:
    """Ragged tokens of the rows.

    x [L, D]; lengths [B], offsets [B + 1], num_targets [B]; rows, places [L]: row of a token and
    its place in it; timestamps [L], 0 for contextual tokens; history [E], targets [T]: where the
    state of each event (its content token; -1 once it is cut off) and of each candidate stands;
    query_time [B]. All int64 but x. max_len and max_targets are at least those of any row.
    """

    x: Tensor
    lengths: Tensor
    offsets: Tensor
    num_targets: Tensor
    rows: Tensor
    places: Tensor
    timestamps: Tensor
    history: Tensor
    targets: Tensor
    query_time: Tensor
    max_len: int
    max_targets: int
    contextual_len: int

    def with_x(self, x: Tensor) -> TokenSequence:
        return replace(self, x=x)

    @property
    def domains(self) -> Tensor:
        """CONTEXTUAL, HISTORY or CANDIDATE of each token, int64 [L]."""
        history_end = (self.lengths - self.num_targets).index_select(0, self.rows)
        candidate = (self.places >= history_end).to(torch.int64)
        return (self.places >= self.contextual_len).to(torch.int64) + candidate

    def truncated(self, tail_len: int, *, ask_device: bool) -> TokenSequence:
        """Without all history tokens of a row but its last `tail_len`; other tokens stay.

        How many tokens are left is known to the device alone. `ask_device` waits for that number,
        which costs nothing on a CPU. Otherwise as many tokens are taken as there can be at most,
        and the surplus are further targets of the rows, at most `tail_len` each: nobody sees them,
        nobody reads them, and `targets` leaves them out.
        """
        context = self.contextual_len
        batch, num_targets = self.lengths.size(0), self.targets.size(0)
        history_lens = self.lengths - self.num_targets - context
        cut = (history_lens - tail_len).clamp(min=0)
        lengths = self.lengths - cut
        spare = torch.zeros_like(cut)
        if ask_device:
            total = int(lengths.sum())
        else:
            others = batch * context + num_targets
            total = others + torch.sym_min(self.x.size(0) - others, batch * tail_len)
            before = torch.arange(batch, device=cut.device) * tail_len
            spare = (total - lengths.sum() - before).clamp(min=0, max=tail_len)
        offsets = jagged.offsets_of(lengths + spare)
        rows, places = jagged.place_index(lengths + spare, total)
        old_places = places + torch.where(places < context, 0, cut.index_select(0, rows))
        # a spare token is the row's last one again
        old_places = torch.minimum(old_places, (self.lengths - 1).index_select(0, rows))
        source = (self.offsets.index_select(0, rows) + old_places).clamp(min=0)

        def moved(index: Tensor) -> Tensor:
            row, place = self.rows.index_select(0, index), self.places.index_select(0, index)
            gone = cut.index_select(0, row)
            there = offsets.index_select(0, row) + place - gone
            return torch.where(place < context + gone, -1, there)

        surplus = 0 if ask_device else tail_len
        longest = min(self.max_len, context + tail_len + self.max_targets)
        return replace(
            self,
            x=self.x.index_select(0, source),
            lengths=lengths + spare,
            offsets=offsets,
            num_targets=self.num_targets + spare,
            rows=rows,
            places=places,
            timestamps=self.timestamps.index_select(0, source),
            history=moved(self.history),
            targets=moved(self.targets),
            max_len=longest + surplus,
            max_targets=self.max_targets + surplus,
        )


def last_time(timestamps: Tensor, lengths: Tensor, fallback: Tensor) -> Tensor:
    """Time of each row's last step, or `fallback` where the row is empty; all int64, [B]."""
    padded = torch.cat([timestamps, timestamps.new_zeros(1)])
    last = torch.cumsum(lengths, 0) - 1
    chosen = padded.index_select(0, torch.where(lengths > 0, last, timestamps.size(0)))
    return torch.where(lengths > 0, chosen, fallback)


def first_time(timestamps: Tensor, lengths: Tensor, fallback: Tensor) -> Tensor:
    """Time of each row's first step, or `fallback` where the row is empty; all int64, [B]."""
    padded = torch.cat([timestamps, timestamps.new_zeros(1)])
    first = torch.cumsum(lengths, 0) - lengths
    chosen = padded.index_select(0, torch.where(lengths > 0, first, timestamps.size(0)))
    return torch.where(lengths > 0, chosen, fallback)


def assemble(
    *,
    contextual: Tensor | None,
    history: Tensor,
    tokens_per_event: int,
    targets: Tensor,
    events: Events,
) -> TokenSequence:
    """Lay tokens out by row.

    contextual [B, C, D] or None; history [E * tokens_per_event, D], the content token of an event
    first; targets [T, D].
    """
    batch = events.uih_lengths.size(0)
    context_len = 0 if contextual is None else contextual.size(1)
    context_lengths = torch.full_like(events.uih_lengths, context_len)
    lengths = [context_lengths, events.uih_lengths * tokens_per_event, events.num_candidates]
    totals = [batch * context_len, history.size(0), targets.size(0)]
    places = jagged.concat_places(lengths, totals)
    parts = [history, targets]
    times = [events.uih_timestamps.repeat_interleave(tokens_per_event), events.candidate_timestamps]
    if contextual is not None:
        parts = [contextual.flatten(0, 1).to(history.dtype), *parts]
        times = [events.uih_timestamps.new_zeros(totals[0]), *times]
    used = places if contextual is not None else places[1:]
    total_lengths = torch.stack(lengths).sum(0)
    rows, in_row = jagged.place_index(total_lengths, sum(totals))
    return TokenSequence(
        x=jagged.concat([part.to(history.dtype) for part in parts], used),
        lengths=total_lengths,
        offsets=jagged.offsets_of(total_lengths),
        num_targets=events.num_candidates,
        rows=rows,
        places=in_row,
        timestamps=jagged.concat(times, used),
        history=places[1].view(-1, tokens_per_event)[:, 0],
        targets=places[2],
        query_time=events.query_time,
        max_len=context_len + events.max_uih_len * tokens_per_event + events.max_candidates,
        max_targets=events.max_candidates,
        contextual_len=context_len,
    )
