# SPDX-License-Identifier: Apache-2.0
"""Token layout and request times against lists."""

from __future__ import annotations

import torch
from torch import Tensor

from tzgen.modules.sequence import Events, assemble, first_time, last_time


def int64(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def events() -> Events:
    return Events(
        uih=torch.zeros(3, 1),
        uih_lengths=int64(2, 0, 1),
        uih_timestamps=int64(10, 20, 30),
        num_candidates=int64(1, 2, 0),
        candidate_timestamps=int64(25, 40, 41),
        query_time=int64(25, 41, 30),
        max_uih_len=2,
        max_candidates=2,
    )


def test_layout() -> None:
    contextual = torch.tensor([[[100.0]], [[101.0]], [[102.0]]])
    history = torch.tensor([[1.0], [1.5], [2.0], [2.5], [3.0], [3.5]])  # content, action
    targets = torch.tensor([[7.0], [8.0], [9.0]])
    tokens = assemble(
        contextual=contextual, history=history, tokens_per_event=2, targets=targets, events=events()
    )
    rows = [[100, 1, 1.5, 2, 2.5, 7], [101, 8, 9], [102, 3, 3.5]]
    assert tokens.x.flatten().tolist() == [value for row in rows for value in row]
    assert tokens.offsets.tolist() == [0, 6, 9, 12]
    assert tokens.timestamps.tolist() == [0, 10, 10, 20, 20, 25, 0, 40, 41, 0, 30, 30]
    assert tokens.rows.tolist() == [0] * 6 + [1] * 3 + [2] * 3
    assert tokens.places.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1, 2]
    assert tokens.x[tokens.history].flatten().tolist() == [1, 2, 3]
    assert tokens.x[tokens.targets].flatten().tolist() == [7, 8, 9]
    assert tokens.domains.tolist() == [0, 1, 1, 1, 1, 2, 0, 2, 2, 0, 1, 1]
    assert (tokens.max_len, tokens.contextual_len) == (1 + 2 * 2 + 2, 1)


def test_layout_without_contextual_tokens() -> None:
    tokens = assemble(
        contextual=None,
        history=torch.tensor([[1.0], [2.0], [3.0]]),
        tokens_per_event=1,
        targets=torch.tensor([[7.0], [8.0], [9.0]]),
        events=events(),
    )
    assert tokens.x.flatten().tolist() == [1, 2, 7, 8, 9, 3]
    assert tokens.domains.tolist() == [1, 1, 2, 2, 2, 1]


def test_first_and_last_times_fall_back_on_empty_rows() -> None:
    times, lengths, fallback = int64(5, 6, 7, 9), int64(0, 3, 0, 1), int64(-1, -2, -3, -4)
    assert last_time(times, lengths, fallback).tolist() == [-1, 7, -3, 9]
    assert first_time(times, lengths, fallback).tolist() == [-1, 5, -3, 9]
    empty = int64()
    assert last_time(empty, int64(0, 0), int64(3, 4)).tolist() == [3, 4]
