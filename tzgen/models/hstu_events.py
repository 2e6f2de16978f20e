# SPDX-License-Identifier: Apache-2.0
"""The groups of a channel as the events that its transducer reads: whole rows or parts of them.

A channel named n reads the groups n, n_action, n_watchtime and n_timestamp; contextual, candidate
and candidate_timestamp are shared by all. Histories that are stored newest first are turned around.
B rows, E history events, T candidates, C contextual tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tzgen.embeddings import Groups, Ragged
from tzgen.errors import UserError
from tzgen.models.base import integer_sequence, ragged_group, real_numbers
from tzgen.modules.sequence import Events, first_time, last_time
from tzgen.ops import jagged


@dataclass(frozen=True)
class Channel:
    """How the groups of a channel become Events.

    contextual: number of contextual tokens and their width. history_dim, candidate_dim: widths of
    an event and of a candidate. needs_request_time: whether ages are measured from the request.
    """

    name: str
    oldest_first: bool
    contextual: tuple[int, int]
    history_dim: int
    candidate_dim: int
    reads_actions: bool
    reads_watchtime: bool
    reads_history_time: bool
    reads_candidate_time: bool
    needs_request_time: bool

    def events(self, groups: Groups) -> Events:
        """History and candidates; ages count from each row's newest candidate."""
        history = self._history(groups)
        events = self._with_candidates(history, groups)
        newest_event = self._newest_event(history)
        return replace(events, query_time=self._newest_request(events, newest_event))

    def history(self, groups: Groups, request_time: Tensor | None = None) -> Events:
        """The history alone, at `request_time` int64 [B]; without it, group candidate_timestamp
        says when the request is, and where ages are not read, nothing has to.
        """
        events = self._history(groups)
        if request_time is None:
            request_time = self.request_time(groups, self._newest_event(events))
        return replace(events, query_time=request_time)

    def request_time(self, groups: Groups, fallback: Tensor) -> Tensor:
        """Each row's newest candidate_timestamp, int64 [B]; `fallback` where ages are not read."""
        if not self.needs_request_time:
            return fallback
        if "candidate_timestamp" not in groups:
            raise UserError(
                "positional_encoder.use_time_encoding measures ages from the request: give "
                "request_time, int64 seconds for each row, or group candidate_timestamp"
            )
        requests = integer_sequence(groups, "candidate_timestamp")
        newest = last_time if self.oldest_first else first_time
        return newest(requests.values, requests.lengths, fallback)

    def contextual_features(self, groups: Groups) -> Tensor | None:
        """[B, C, Dx], or None without contextual features."""
        tokens, width = self.contextual
        if tokens == 0:
            return None
        value = groups.get("contextual")
        if not isinstance(value, Tensor):
            raise UserError(f"group 'contextual': found {type(value).__name__}; expected DEEP")
        return real_numbers(value).view(-1, tokens, width)

    def candidates(self, groups: Groups) -> Events:
        """The candidates alone, with an empty history."""
        candidate = ragged_group(groups, "candidate")
        values, zeros = real_numbers(candidate.values), torch.zeros_like(candidate.lengths)
        empty = Events(
            uih=values.new_zeros(0, self.history_dim),
            uih_lengths=zeros,
            uih_timestamps=zeros[:0],
            num_candidates=zeros,
            candidate_timestamps=zeros[:0],
            query_time=zeros,
            max_uih_len=0,
            max_candidates=0,
            actions=zeros[:0] if self.reads_actions else None,
            watchtimes=values.new_zeros(0) if self.reads_watchtime else None,
        )
        events = self._with_candidates(empty, groups)
        return replace(events, query_time=self._newest_request(events, zeros))

    def _newest_event(self, events: Events) -> Tensor:
        nothing = torch.zeros_like(events.uih_lengths)
        return last_time(events.uih_timestamps, events.uih_lengths, nothing)

    def _newest_request(self, events: Events, fallback: Tensor) -> Tensor:
        newest = last_time if self.oldest_first else first_time
        return newest(events.candidate_timestamps, events.num_candidates, fallback)

    def _history(self, groups: Groups) -> Events:
        uih = ragged_group(groups, self.name)
        order = None
        if not self.oldest_first:
            order = jagged.flip_index(uih.lengths, uih.values.size(0))

        def turned(value: Ragged, name: str) -> Tensor:
            if value.values.size(0) != uih.values.size(0):
                raise UserError(
                    f"group {name!r} has {value.values.size(0)} steps and {self.name!r} "
                    f"{uih.values.size(0)}; expected one for each event. Their columns differ."
                )
            return value.values if order is None else value.values.index_select(0, order)

        def optional(suffix: str, wanted: bool) -> Tensor | None:
            name = f"{self.name}_{suffix}"
            return turned(integer_sequence(groups, name), name) if wanted else None

        watchtimes = None
        if self.reads_watchtime:
            name = f"{self.name}_watchtime"
            watchtimes = turned(ragged_group(groups, name), name).reshape(-1)
        times = optional("timestamp", self.reads_history_time)
        values = real_numbers(turned(uih, self.name))
        zeros = torch.zeros_like(uih.lengths)
        return Events(
            uih=values,
            uih_lengths=uih.lengths,
            uih_timestamps=zeros.new_zeros(values.size(0)) if times is None else times,
            candidates=values.new_zeros(0, self.candidate_dim),
            num_candidates=zeros,
            candidate_timestamps=zeros[:0],
            query_time=zeros,
            max_uih_len=uih.max_len,
            max_candidates=0,
            contextual=self.contextual_features(groups),
            actions=optional("action", self.reads_actions),
            watchtimes=watchtimes,
        )

    def _with_candidates(self, events: Events, groups: Groups) -> Events:
        candidate = ragged_group(groups, "candidate")
        requests = candidate.lengths.new_zeros(candidate.values.size(0))
        if self.reads_candidate_time:
            requests = integer_sequence(groups, "candidate_timestamp").values
        return replace(
            events,
            candidates=real_numbers(candidate.values),
            num_candidates=candidate.lengths,
            candidate_timestamps=requests,
            max_candidates=candidate.max_len,
        )
