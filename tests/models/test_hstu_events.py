# SPDX-License-Identifier: Apache-2.0
"""Parts of the groups are the parts of the events; the request's time comes from the candidates."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hstu_configs import WATCHTIME, hstu, preprocessor
from hstu_model import WIDTHS, config, groups, people
from torch import Tensor

from tzgen.errors import UserError
from tzgen.models.hstu_channel import make_channel
from tzgen.models.hstu_events import Channel
from tzgen.protos import module_pb2

SIZES = [(5, 3), (0, 2), (4, 0)]


def channel(message: module_pb2.HSTU | None = None, extra: str = "") -> Channel:
    made = config(message or hstu(inputs=preprocessor(actions=WATCHTIME)), extra).dlrm_hstu
    return make_channel(made, made.hstu, WIDTHS)


def test_history_and_candidates_are_the_halves_of_the_events() -> None:
    given, read = groups(people(SIZES)), channel()
    whole, history, alone = read.events(given), read.history(given), read.candidates(given)
    for name in ("uih", "uih_lengths", "uih_timestamps", "contextual", "actions", "watchtimes"):
        assert torch.equal(getattr(history, name), getattr(whole, name)), name
    for name in ("candidates", "num_candidates", "candidate_timestamps"):
        assert torch.equal(getattr(alone, name), getattr(whole, name)), name
    assert torch.equal(history.query_time, whole.query_time)
    assert history.candidates is not None and history.candidates.shape == (0, 8)
    assert alone.uih.shape == (0, 6) and alone.actions is not None and alone.contextual is None
    for events, names in ((history, ("max_candidates",)), (alone, ("max_uih_len",))):
        assert [getattr(events, name) for name in names] == [0]
    assert {field.name for field in fields(whole)} == {field.name for field in fields(history)}


def test_newest_first_rows_take_the_first_candidates_time() -> None:
    given = groups(people(SIZES))
    oldest, newest = channel(), channel(extra="sequence_timestamp_is_ascending: false")
    times = given["candidate_timestamp"].values.flatten()
    assert oldest.candidates(given).query_time.tolist() == [int(times[2]), int(times[4]), 0]
    assert newest.candidates(given).query_time.tolist() == [int(times[0]), int(times[3]), 0]
    turned = newest.history(given).uih
    assert torch.equal(turned[:5], given["uih"].values[:5].flip(0))


def test_without_candidates_ages_count_from_the_newest_event() -> None:
    given = groups(people(SIZES))
    last = given["uih_timestamp"].values.flatten()[-1]
    assert int(channel().history(given).query_time[2]) == int(last)


def test_request_times_are_needed_only_for_ages() -> None:
    given = {n: v for n, v in groups(people(SIZES)).items() if not n.startswith("candidate")}
    with pytest.raises(UserError, match=r"use_time_encoding.*request_time"):
        channel().history(given)
    time = torch.tensor([7, 8, 9])
    assert torch.equal(channel().history(given, time).query_time, time)
    plain = channel(hstu("relative_bias {}", positions=""))
    assert int(plain.history(given).query_time[1]) == 0


def test_contextual_features_must_be_dense() -> None:
    given = groups(people(SIZES))
    value = channel().contextual_features(given)
    assert isinstance(value, Tensor) and value.shape == (3, 2, 4)
    with pytest.raises(UserError, match="expected DEEP"):
        channel().contextual_features({})
    assert replace(channel(), contextual=(0, 0)).contextual_features({}) is None
