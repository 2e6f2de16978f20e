# SPDX-License-Identifier: Apache-2.0
"""What append_stable accepts is stable and what it refuses is not: every combination, by states."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from dense_hstu import User, batch_events
from hstu_configs import INTERLEAVE, PARAMETERIZED, hstu, preprocessor
from hstu_model import config, people
from torch import Tensor

from tzgen.config.stability import append_refusals, stability_problems, unstable_choices
from tzgen.config.validate_model import model_problems
from tzgen.models.dlrm_hstu import DlrmHSTU
from tzgen.models.hstu_options import hstu_options
from tzgen.modules.sequence import TokenSequence
from tzgen.modules.transducer import HSTUTransducer
from tzgen.protos import module_pb2, pipeline_pb2

CONTEXTUAL = 2
WINDOW = "max_attn_len: 2"
MASKS = (
    "",
    WINDOW,
    f"{WINDOW} window_keeps_contextual: false",
    f"{WINDOW} full_attn_tail: 2",
    "sla_k1: 2 sla_k2: 4",
    "sla_k1: 2",
    "sla_k2: 3",
)
PREFIXES = ("", "contextual_seq_len: 0", "contextual_seq_len: 1", "contextual_seq_len: 4")
BIASES = (
    "",
    "relative_bias { use_time: false }",
    "relative_bias { use_position: false }",
    "preset: PAPER",
)
POSITIONS = ("", "num_time_buckets: 40 use_time_encoding: true")
MTGR = ("", "mtgr { timestamp_mask: false }", "mtgr {}", "mtgr { realtime_len: 2 }")
INPUTS = (
    preprocessor(),
    preprocessor(INTERLEAVE, mlp=PARAMETERIZED),
)
LONG, SHORT = (7, 5, 2, 1), (5, 3, 1, 0)


def messages(mask: str) -> list[module_pb2.HSTU]:
    """Every combination with this mask that is one model, stable or not."""
    return [
        hstu(
            f"append_stable: true {mask} {prefix} {bias}",
            inputs=inputs,
            positions=positions,
            extra=mtgr,
        )
        for prefix, bias, inputs, positions, mtgr in product(
            PREFIXES, BIASES, INPUTS, POSITIONS, MTGR
        )
        if not (mtgr.endswith(("{}", "2 }")) and ("sla" in mask or INTERLEAVE in inputs))
        and not (positions and (bias or INTERLEAVE in inputs))  # refused whatever stands beside it
    ]


def problems(message: module_pb2.HSTU) -> list[str]:
    """What the config's validation and the model's say."""
    made = config(message)
    made.feature_groups[0].feature_names.extend(["a", "b"])
    whole = pipeline_pb2.PipelineConfig(model_config=made)
    return [str(p) for p in (*model_problems(whole), *DlrmHSTU.check(made))]


def cut(users: list[User], lengths: tuple[int, ...]) -> list[User]:
    """The oldest events of each user."""
    return [
        replace(
            user,
            uih=user.uih[:keep],
            times=user.times[:keep],
            actions=user.actions[:keep],
            watchtimes=user.watchtimes[:keep],
        )
        for user, keep in zip(users, lengths, strict=True)
    ]


def largest_change(message: module_pb2.HSTU) -> float:
    """How far states of earlier tokens move when events are appended to every row."""
    torch.manual_seed(3)
    options = hstu_options(message)
    transducer = HSTUTransducer(
        options,
        uih_dim=6,
        candidate_dim=8,
        contextual_dim=4,
        contextual_len=CONTEXTUAL,
        max_seq_len=24,
        kernel="PYTORCH",
    ).double()
    with torch.no_grad():
        for parameter in transducer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        users = people([(count, 1) for count in LONG])
        tokens = [transducer.encode(batch_events(rows)) for rows in (users, cut(users, SHORT))]
    per_event = 2 if INTERLEAVE in str(message) else 1
    kept = [_states(encoded, per_event) for encoded in tokens]
    return float((kept[0] - kept[1]).abs().max())


def _states(tokens: TokenSequence, per_event: int) -> Tensor:
    """States of contextual tokens and of the events that are there before and after."""
    rows = zip(tokens.offsets.tolist(), SHORT, strict=False)
    return torch.cat([tokens.x[at : at + CONTEXTUAL + n * per_event] for at, n in rows])


@pytest.mark.parametrize("mask", MASKS)
def test_accepted_means_stable_and_refused_means_moving(mask: str) -> None:
    accepted = 0
    for message in messages(mask):
        change = largest_change(message)
        if problems(message):
            assert change > 1e-9, f"refused and yet nothing moves: {message}"
        else:
            accepted += 1
            assert change < 1e-12, f"accepted and yet states move by {change}: {message}"
    assert accepted or "full_attn_tail" in mask


def test_group_norm_is_stable() -> None:
    message = hstu("append_stable: true use_group_norm: true relative_bias {}", positions="")
    assert problems(message) == [] and largest_change(message) < 1e-12


UNSTABLE = {
    "positional_encoder.use_time_encoding": hstu("append_stable: true"),
    "stu.full_attn_tail": hstu(f"append_stable: true {WINDOW} full_attn_tail: 3", positions=""),
    "stu.contextual_seq_len": hstu("append_stable: true contextual_seq_len: 3", positions=""),
    "attn_truncation_split_layer": hstu(
        "append_stable: true", positions="", extra="attn_truncation_split_layer: 1"
    ),
    "attn_truncation_tail_len": hstu(
        "append_stable: true", positions="", extra="attn_truncation_tail_len: 4"
    ),
    "mtgr.realtime_len": hstu(
        "append_stable: true", positions="", extra="mtgr { realtime_len: 3 }"
    ),
}


@pytest.mark.parametrize("field", UNSTABLE)
def test_each_unstable_choice_is_refused_by_name(field: str) -> None:
    found = list(stability_problems(UNSTABLE[field], "hstu", CONTEXTUAL))
    assert [problem.path for problem in found] == ["hstu.stu.append_stable"]
    assert f"append_stable with {field} (" in str(found[0])
    assert any(field in text for text in problems(UNSTABLE[field]))
    assert field in str(append_refusals(UNSTABLE[field], CONTEXTUAL)[0])


def test_everything_at_once_is_named_at_once() -> None:
    message = hstu(
        f"append_stable: true {WINDOW} full_attn_tail: 3 contextual_seq_len: 9",
        extra="attn_truncation_split_layer: 1 attn_truncation_tail_len: 4 mtgr { realtime_len: 3 }",
    )
    assert {choice.field for choice in unstable_choices(message, CONTEXTUAL)} == set(UNSTABLE)


def test_appending_without_append_stable_is_refused_and_would_be_wrong() -> None:
    quiet = hstu(positions="")
    assert problems(quiet) == []
    assert [choice.field for choice in append_refusals(quiet)] == ["stu.append_stable"]
    assert largest_change(quiet) > 1e-6  # contextual tokens
    timed = hstu("contextual_seq_len: 0 relative_bias {}", positions="")
    assert largest_change(timed) > 1e-6  # the next event's time
    assert append_refusals(hstu("append_stable: true", positions="")) == []
