# SPDX-License-Identifier: Apache-2.0
"""Paths into a config: `a.b[3].c`, `a[-1]`, `a[:]`, `a[1:3]`, `a[x.y=value]`, `a[+]`.

What they mean on the command line is told in `override.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tzgen.config.schema import is_map, is_message, suggestion, type_name
from tzgen.errors import Problem

_STEP = re.compile(r"\s*(?P<name>\w+)\s*(?:\[(?P<index>[^\]]*)\])?\s*(?P<dot>\.|$)")
_SLICE = re.compile(r"\s*(-?\d*)\s*:\s*(-?\d*)\s*")


@dataclass(frozen=True)
class Step:
    """One name of a path, and what stands between [ and ] behind it."""

    name: str
    index: str | None


class RefusedPath(Exception):
    """Carries the problems of one override up to where those of all overrides are collected."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


def parse_path(path: str, label: str) -> list[Step]:
    steps: list[Step] = []
    at = 0
    while at < len(path) or not steps:
        match = _STEP.match(path, at)
        if match is None:
            raise RefusedPath(
                Problem(
                    label,
                    f"{path[at:]!r}",
                    "field names joined by '.', an index in [ ]",
                    "Example: feature_configs[3].id_feature.num_buckets.",
                )
            )
        steps.append(Step(match["name"], match["index"]))
        at = match.end()
    return steps


def find_field(message: Message, step: Step, label: str) -> FieldDescriptor:
    field = message.DESCRIPTOR.fields_by_name.get(step.name)
    if field is None:
        remedy = suggestion(step.name, [field.name for field in message.DESCRIPTOR.fields])
        expected = f"a field of {message.DESCRIPTOR.name}"
        raise RefusedPath(Problem(label, f"unknown field {step.name!r}", expected, remedy))
    return field


def targets(root: Message, steps: Sequence[Step], label: str) -> list[Message]:
    """The messages that the leading steps of a path lead to; [:] and selectors give several."""
    messages = [root]
    for step in steps:
        below: list[Message] = []
        for message in messages:
            field = find_field(message, step, label)
            if not is_message(field) or is_map(field):
                raise RefusedPath(
                    Problem(
                        label,
                        f"{step.name} has no fields",
                        type_name(field),
                        f"End the path at {step.name}.",
                    )
                )
            below += _descend(message, field, step, label)
        messages = below
    return messages


def _descend(message: Message, field: FieldDescriptor, step: Step, label: str) -> list[Message]:
    if field.is_repeated:
        if step.index is None:
            raise RefusedPath(_needs_index(message, field, label))
        if step.index.strip() == "+":
            return [getattr(message, field.name).add()]
        items = getattr(message, field.name)
        return [items[index] for index in indices(items, field, step.index, label)]
    refuse_index(field, step, label)
    _same_member(message, field, label)
    child: Message = getattr(message, field.name)
    child.SetInParent()
    return [child]


def _needs_index(message: Message, field: FieldDescriptor, label: str) -> Problem:
    count = len(getattr(message, field.name))
    return Problem(
        label,
        f"{field.name} without an index",
        type_name(field),
        f"It has {count} entries: write {field.name}[0], or {field.name}[+] to append.",
    )


def refuse_index(field: FieldDescriptor, step: Step, label: str) -> None:
    if step.index is not None:
        raise RefusedPath(
            Problem(
                label,
                f"{step.name}[{step.index}]",
                type_name(field),
                f"{step.name} is no list: drop the index.",
            )
        )


def _same_member(message: Message, field: FieldDescriptor, label: str) -> None:
    """A path must not silently throw away another member of a oneof."""
    if field.containing_oneof is None:
        return
    held = message.WhichOneof(field.containing_oneof.name)
    if held not in (None, field.name):
        raise RefusedPath(
            Problem(
                label,
                f"{held} is set",
                f"{field.name}, another choice of {field.containing_oneof.name}",
                f"Use {held}, or replace the whole message: ...{field.name}={{ ... }}.",
            )
        )


def indices(items: Sequence[object], field: FieldDescriptor, index: str, label: str) -> list[int]:
    count = len(items)
    sliced = _SLICE.fullmatch(index)
    if sliced:
        low, high = (int(text) if text else None for text in sliced.groups())
        chosen = list(range(count))[low:high]
    elif re.fullmatch(r"\s*-?\d+\s*", index):
        at = int(index)
        chosen = [at % count] if -count <= at < count else []
    else:
        chosen = _selected(items, field, index, label)
    if not chosen:
        raise RefusedPath(
            Problem(
                label,
                f"{field.name}[{index}]",
                f"one of the {count} entries of {field.name}",
                f"Use an index below {count}, or [+] to append.",
            )
        )
    return chosen


def _selected(items: Sequence[object], field: FieldDescriptor, index: str, label: str) -> list[int]:
    """Entries whose field has a value: [id_feature.feature_name=user_id]."""
    path, equals, wanted = index.partition("=")
    if not equals or not is_message(field) or path.rstrip()[-1:] in ("<", ">", "!"):
        raise RefusedPath(
            Problem(
                label,
                f"{field.name}[{index}]",
                "a number, '+', a range a:b or name=value",
                f"Example: {field.name}[0].",
            )
        )
    wanted = wanted.strip().strip("\"'")
    chosen = []
    for at, item in enumerate(items):
        value: object = item
        for step in parse_path(path.strip(), label):
            if not isinstance(value, Message):
                break
            inner = find_field(value, step, label)
            held = getattr(value, inner.name)
            value = inner.enum_type.values_by_number[held].name if inner.enum_type else held
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if text == wanted and not isinstance(value, Message):
            chosen.append(at)
    return chosen
