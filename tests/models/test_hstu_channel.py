# SPDX-License-Identifier: Apache-2.0
"""A channel reads its own groups beside the shared ones; models are tested in their own files."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from dense_hstu import batch_events
from hstu_configs import WATCHTIME, hstu, preprocessor
from hstu_model import WIDTHS, config, groups, people
from torch import Tensor

from tzgen.embeddings import Ragged
from tzgen.errors import UserError
from tzgen.models.hstu_channel import Channel, group_rules, make_channel
from tzgen.modules.sequence import Events


def channel(name: str = "", *, positions: str | None = None, watchtime: bool = False) -> Channel:
    inputs = preprocessor(actions=WATCHTIME) if watchtime else None
    message = hstu(inputs=inputs, extra=f'name: "{name}"')
    if positions == "none":
        message = hstu(inputs=inputs, positions="", extra=f'name: "{name}"')
    return make_channel(config().dlrm_hstu, message, {**WIDTHS, name or "uih": WIDTHS["uih"]})


def same(ours: Events, theirs: Events, *names: str) -> None:
    for name in names:
        one, other = getattr(ours, name), getattr(theirs, name)
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other, name


def test_events_are_the_rows() -> None:
    users = people()
    want = batch_events(users)
    got = channel(watchtime=True).events(groups(users))
    same(replace(got, watchtimes=got.watchtimes.double()), want, *[f.name for f in fields(Events)])
    unread = channel(positions="none").events(groups(users))
    assert unread.watchtimes is None
    assert not unread.uih_timestamps.any() and not unread.candidate_timestamps.any()


def test_a_named_channel_reads_its_own_groups() -> None:
    clicks, views = people(), people([(1, 3), (2, 2), (0, 1), (3, 0), (4, 4)], seed=5)
    given = groups(clicks)
    given |= {name.replace("uih", "views"): x for name, x in groups(views).items() if "uih" in name}
    got = channel("views").events(given)
    same(got, channel().events(groups(views)), "uih", "uih_lengths", "actions", "uih_timestamps")
    same(got, channel().events(given), "candidates", "contextual", "candidate_timestamps")


def test_groups_of_other_lengths_are_refused_by_name() -> None:
    given = groups(people())
    action = given["uih_action"]
    assert isinstance(action, Ragged)
    given["uih_action"] = Ragged(action.values[1:], action.lengths, action.max_len)
    with pytest.raises(UserError, match="group 'uih_action' has 18 steps and 'uih' 19"):
        channel().events(given)
    given["contextual"] = given["uih"]
    with pytest.raises(UserError, match="expected DEEP"):
        channel(positions="none").events({**groups(people()), "contextual": given["uih"]})


def test_rules_name_each_group_once_and_what_reads_it() -> None:
    plain = hstu(positions="", extra='name: "b"')
    rules = {rule.name: rule for rule in group_rules([hstu(extra='name: "a"'), plain], "m")}
    assert list(rules) == [
        "contextual",
        *("a", "a_action", "a_watchtime", "a_timestamp"),
        *("b", "b_action", "b_watchtime", "b_timestamp"),
        *("candidate", "candidate_timestamp"),
    ]
    assert rules["a_timestamp"].required and not rules["b_timestamp"].required
    assert rules["candidate_timestamp"].reader == "positional_encoder.use_time_encoding"
    assert not rules["a_watchtime"].required and not rules["contextual"].required
