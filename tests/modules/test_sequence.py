# SPDX-License-Identifier: Apache-2.0
"""Token layout and request times against lists."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tzgen.modules.sequence import Events, TokenSequence, assemble, first_time, last_time


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


ROWS = [(3, 1), (0, 2), (7, 0), (5, 3), (0, 0), (4, 1)]  # events, candidates


def numbered(rows: list[tuple[int, int]], contextual: int, per_event: int) -> TokenSequence:
    """Every token is a number of its own; an event at place p of its row has time 100 + p."""
    uih, candidates = (int64(*column) for column in zip(*rows, strict=True))
    events_of, targets_of = int(uih.sum()), int(candidates.sum())
    times = torch.cat([torch.arange(n) + 100 for n, _ in rows])
    made = Events(
        uih=torch.zeros(events_of, 1),
        uih_lengths=uih,
        uih_timestamps=times,
        num_candidates=candidates,
        candidate_timestamps=torch.arange(targets_of) + 500,
        query_time=torch.zeros_like(uih),
        max_uih_len=int(uih.max()),
        max_candidates=int(candidates.max()),
    )
    history = torch.arange(events_of * per_event, dtype=torch.float64).view(-1, 1) + 1000
    targets = torch.arange(targets_of, dtype=torch.float64).view(-1, 1) + 5000
    size = (len(rows), contextual, 1)
    context = torch.arange(len(rows) * contextual, dtype=torch.float64).view(size)
    return assemble(
        contextual=context if contextual else None,
        history=history,
        tokens_per_event=per_event,
        targets=targets,
        events=made,
    )


def rows_of(tokens: TokenSequence) -> list[Tensor]:
    return list(tokens.x.split(tokens.lengths.tolist()))


@pytest.mark.parametrize("ask_device", [True, False])
@pytest.mark.parametrize("contextual", [0, 2])
@pytest.mark.parametrize("per_event", [1, 2])
@pytest.mark.parametrize("tail", [1, 3, 4, 50])
def test_truncation_against_a_loop_over_rows(
    ask_device: bool, contextual: int, per_event: int, tail: int
) -> None:
    tokens = numbered(ROWS, contextual, per_event)
    cut = tokens.truncated(tail, ask_device=ask_device)
    want_history, start = [], 0
    for number, (before, after) in enumerate(zip(rows_of(tokens), rows_of(cut), strict=True)):
        events, targets = ROWS[number]
        end = contextual + events * per_event
        gone = max(events * per_event - tail, 0)
        want = torch.cat([before[:contextual], before[contextual + gone : end], before[end:]])
        assert torch.equal(after[: len(want)], want)
        surplus = len(after) - len(want)
        assert cut.num_targets[number] == targets + surplus and surplus <= tail
        assert cut.places[start : start + len(after)].tolist() == list(range(len(after)))
        assert (cut.rows[start : start + len(after)] == number).all()
        for event in range(events):
            place = contextual + event * per_event - gone
            want_history.append(start + place if place >= contextual else -1)
        start += len(after)
        assert len(after) <= cut.max_len and cut.num_targets[number] <= cut.max_targets
        if ask_device:
            assert surplus == 0
    assert start == cut.x.size(0)
    assert cut.offsets.tolist() == [0, *torch.cumsum(cut.lengths, 0).tolist()]
    assert cut.history.tolist() == want_history
    assert torch.equal(cut.x[cut.targets], tokens.x[tokens.targets])
    known = cut.timestamps >= 100
    assert known.sum() == cut.x.size(0) - contextual * len(ROWS)
    assert torch.equal(cut.timestamps[cut.targets], tokens.timestamps[tokens.targets])


def test_truncation_bounds_shrink() -> None:
    tokens = numbered(ROWS, 2, 2)
    assert (tokens.max_len, tokens.max_targets) == (2 + 14 + 3, 3)
    exact = tokens.truncated(3, ask_device=True)
    assert (exact.max_len, exact.max_targets) == (2 + 3 + 3, 3)
    bound = tokens.truncated(3, ask_device=False)
    assert (bound.max_len, bound.max_targets) == (2 + 3 + 3 + 3, 3 + 3)
    # 12 contextual, 7 targets; 38 history tokens in six rows of at most three
    assert bound.x.size(0) == 12 + 7 + 18
    short = tokens.truncated(50, ask_device=True)
    assert (short.max_len, short.x.size(0)) == (tokens.max_len, tokens.x.size(0))


@pytest.mark.parametrize("ask_device", [True, False])
@pytest.mark.parametrize("rows", [[(0, 0)], [(0, 0), (2, 0)], [(0, 3)], [(0, 0), (9, 1), (0, 0)]])
def test_truncation_of_empty_rows(ask_device: bool, rows: list[tuple[int, int]]) -> None:
    cut = numbered(rows, 0, 1).truncated(2, ask_device=ask_device)
    real = cut.lengths - cut.num_targets
    assert real.tolist() == [min(events, 2) for events, _ in rows]
    assert cut.targets.numel() == sum(targets for _, targets in rows)


def test_truncation_without_asking_the_device() -> None:
    """Fake tensors have no numbers to ask for."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    tokens = numbered([(2, 1)], 1, 1)
    with FakeTensorMode() as fake:
        faked = {
            name: fake.from_tensor(value) if isinstance(value, Tensor) else value
            for name, value in vars(tokens).items()
        }
        assert TokenSequence(**faked).truncated(1, ask_device=False).x.shape == (3, 1)
