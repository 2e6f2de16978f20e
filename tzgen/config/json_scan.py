# SPDX-License-Identifier: Apache-2.0
"""Every unknown name of a JSON config at once, each with line and column.

json_format stops at the first mistake and knows no positions. `scan` reads the same text with a
small reader that keeps them, and walks it along the descriptors.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tzgen.config.schema import (
    is_map,
    is_message,
    join,
    parse_scalar,
    second_member,
    type_name,
    unknown_field,
    wrong_value,
)
from tzgen.errors import Problem

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_STRUCTS = "google.protobuf."


@dataclass(frozen=True)
class _Node:
    """A value and where it starts; `value` is dict[str, (key offset, node)], list or a scalar."""

    value: object
    offset: int


def scan(text: str, root: Descriptor) -> list[Problem]:
    """Unknown fields and enum values, values of the wrong type, two members of one oneof."""
    problems: list[Problem] = []
    _object(_read(text, _skip(text, 0))[0], [root], "", text, problems)
    return problems


def place(text: str, offset: int) -> str:
    """'line 3, column 5, '"""
    line = text.count("\n", 0, offset) + 1
    column = offset - (text.rfind("\n", 0, offset) + 1) + 1
    return f"line {line}, column {column}, "


def _skip(text: str, offset: int) -> int:
    matched = _SPACE.match(text, offset)
    return matched.end() if matched else offset


def _read(text: str, offset: int) -> tuple[_Node, int]:
    """The value at `offset` of a text that json.loads accepted, and the offset behind it."""
    if text[offset] == "{":
        return _read_object(text, offset)
    if text[offset] == "[":
        items: list[_Node] = []
        at = _skip(text, offset + 1)
        while text[at] != "]":
            item, at = _read(text, at)
            items.append(item)
            at = _skip(text, at)
            at = _skip(text, at + 1) if text[at] == "," else at
        return _Node(items, offset), at + 1
    value, end = _DECODER.raw_decode(text, offset)
    return _Node(value, offset), end


def _read_object(text: str, offset: int) -> tuple[_Node, int]:
    members: dict[str, tuple[int, _Node]] = {}
    at = _skip(text, offset + 1)
    while text[at] != "}":
        key, end = _DECODER.raw_decode(text, at)
        node, after = _read(text, _skip(text, _skip(text, end) + 1))
        members[key] = (at, node)
        at = _skip(text, after)
        at = _skip(text, at + 1) if text[at] == "," else at
    return _Node(members, offset), at + 1


def _object(
    node: _Node, enclosing: list[Descriptor], path: str, text: str, problems: list[Problem]
) -> None:
    if not isinstance(node.value, dict) or enclosing[-1].full_name.startswith(_STRUCTS):
        return
    members: dict[str, str] = {}
    for key, (offset, value) in node.value.items():
        here = enclosing[-1]
        field = here.fields_by_name.get(key) or here.fields_by_camelcase_name.get(key)
        if field is None:
            problems.append(unknown_field(key, join(path, key), enclosing, place(text, offset)))
            continue
        where = join(path, field.name)
        if field.containing_oneof is not None:
            oneof = field.containing_oneof.name
            other = members.setdefault(oneof, field.name)
            if other != field.name:
                problems.append(second_member(field, other, f"{place(text, offset)}{where}"))
        _member(field, value, enclosing, where, text, problems)


def _member(
    field: FieldDescriptor,
    node: _Node,
    enclosing: list[Descriptor],
    path: str,
    text: str,
    problems: list[Problem],
) -> None:
    if is_map(field) or node.value is None:
        return
    if not field.is_repeated:
        _value(field, node, enclosing, path, text, problems)
    elif isinstance(node.value, list):
        for index, item in enumerate(node.value):
            _value(field, item, enclosing, f"{path}[{index}]", text, problems)
    else:
        problems.append(
            Problem(
                f"{place(text, node.offset)}{path}",
                "one value",
                type_name(field),
                "Wrap it in [ ].",
            )
        )


def _value(
    field: FieldDescriptor,
    node: _Node,
    enclosing: list[Descriptor],
    path: str,
    text: str,
    problems: list[Problem],
) -> None:
    if is_message(field) and isinstance(node.value, dict):
        _object(node, [*enclosing, field.message_type], path, text, problems)
    elif is_message(field) and field.message_type.full_name.startswith(_STRUCTS):
        return  # any JSON value is one
    elif not _fits(field, node.value):
        shown = "{ ... }" if isinstance(node.value, dict) else json.dumps(_plain(node.value))
        problems.append(wrong_value(field, shown.strip('"'), path, place(text, node.offset)))


def _plain(value: object) -> object:
    return "[ ... ]" if isinstance(value, list) else value


def _fits(field: FieldDescriptor, value: object) -> bool:
    """Whether json_format takes this scalar for the field."""
    if is_message(field) or isinstance(value, (dict, list)) or value is None:
        return False
    if field.type == FieldDescriptor.TYPE_STRING:
        return isinstance(value, str)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    whole = isinstance(value, float) and value.is_integer()  # 1e3 is an integer in JSON
    try:
        parse_scalar(field, str(int(value)) if isinstance(value, float) and whole else str(value))
    except ValueError:
        return False
    return True
