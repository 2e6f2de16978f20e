# SPDX-License-Identifier: Apache-2.0
"""Which choices of an HSTU let an appended event change the states of earlier tokens.

Cached keys and values of a history stay valid across requests only if none is made. What follows a
token (the request's time, the number of events, the events themselves) must not reach it:

    positional_encoder.use_time_encoding     ages are measured from the request, places from the end
    stu.full_attn_tail                       an event leaves the tail when newer ones arrive
    stu.contextual_seq_len                   beyond the contextual tokens, events see each other
    attn_truncation_*                        an event is cut when newer ones arrive
    mtgr.realtime_len                        an event turns static when newer ones arrive
    no stu.append_stable                     contextual tokens see the whole history, and
                                             stu.relative_bias reads the time of the next event

All others are stable: windows and semi-local attention look back, positions without time encoding
count from the start, an interleaved event is two tokens that look back, and mtgr.timestamp_mask
hides newer events from older ones (appended events must not be older than what is there).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.message import Message

from tzgen.errors import Problem


@dataclass(frozen=True)
class UnstableChoice:
    """A field below HSTU, what it holds, and why that moves earlier states."""

    field: str
    value: str
    why: str

    def __str__(self) -> str:
        return f"{self.field} ({self.value}): {self.why}"


def unstable_choices(hstu: Message, contextual_tokens: int | None = None) -> list[UnstableChoice]:
    """What contradicts `append_stable: true`; [] where nothing does.

    `contextual_tokens`: how many each row starts with, where that is known.
    """
    return list(_choices(hstu, contextual_tokens))


def append_refusals(hstu: Message, contextual_tokens: int | None = None) -> list[UnstableChoice]:
    """Why events cannot be appended to a cache of this model; [] where they can."""
    found = unstable_choices(hstu, contextual_tokens)
    if not hstu.stu.append_stable:
        why = "contextual tokens see the whole history, and time bias reads the next event's time"
        found.insert(0, UnstableChoice("stu.append_stable", "false", why))
    return found


def stability_problems(
    hstu: Message, path: str, contextual_tokens: int | None = None
) -> Iterator[Problem]:
    """One Problem for each choice that contradicts `append_stable: true`."""
    if hstu.stu.append_stable:
        for choice in unstable_choices(hstu, contextual_tokens):
            yield Problem(
                f"{path}.stu.append_stable",
                f"append_stable with {choice.field} ({choice.value})",
                "states that do not move when events are appended",
                f"{choice.why[0].upper()}{choice.why[1:]}.",
            )


def _choices(hstu: Message, contextual_tokens: int | None) -> Iterator[UnstableChoice]:
    stu = hstu.stu
    if hstu.positional_encoder.use_time_encoding:
        yield UnstableChoice(
            "positional_encoder.use_time_encoding",
            "true",
            "ages and places count back from the request; stu.relative_bias is stable",
        )
    if stu.full_attn_tail:
        why = "an event loses its wide view when newer ones push it out of the tail"
        yield UnstableChoice("stu.full_attn_tail", str(stu.full_attn_tail), why)
    semi_local = stu.sla_k1 or stu.sla_k2  # contextual tokens look back only there
    prefix = 0 if contextual_tokens is None or semi_local else stu.contextual_seq_len
    if prefix > (contextual_tokens or 0):
        yield UnstableChoice(
            "stu.contextual_seq_len",
            str(prefix),
            f"events behind the {contextual_tokens} contextual tokens would see each other; "
            "leave it out",
        )
    for name in ("attn_truncation_split_layer", "attn_truncation_tail_len"):
        if getattr(hstu, name):
            yield UnstableChoice(
                name, str(getattr(hstu, name)), "newer events push older ones out of the tail"
            )
    if hstu.HasField("mtgr") and hstu.mtgr.timestamp_mask and hstu.mtgr.realtime_len:
        yield UnstableChoice(
            "mtgr.realtime_len",
            str(hstu.mtgr.realtime_len),
            "static events see each other, and newer events make older ones static",
        )
