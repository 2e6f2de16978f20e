# SPDX-License-Identifier: Apache-2.0
"""Every unknown name of a JSON config at once, each with line and column.

json_format stops at the first mistake and knows no positions. `scan` reads the same text with a small
position-keeping reader and walks it along the descriptors.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from json.decoder import scanstring

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tzgen.config.schema import is_map, is_message, join, unknown_field, wrong_value
from tzgen.errors import Problem

_SPACE = re.compile(r"[ \t\n\r]*")
_SCALAR = re.compile(r"[^\s,\]}]+")
_STRUCTS = "google.protobuf."


@dataclass(frozen=True)
class _Node:
    """A JSON value and where it starts; `value` is dict[str, (key offset, node)], list or a scalar."""

    value: object
    offset: int


def scan(text: str, root: Descriptor) -> list[Problem]:
    """Unknown fields, unknown enum values and scalars where a message stands."""
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
    if text[offset] == '"':
        string, end = scanstring(text, offset + 1)
        return _Node(string, offset), end
    matched = _SCALAR.match(text, offset)
    end = matched.end() if matched else offset + 1
    return _Node(json.loads(text[offset:end]), offset), end


def _read_object(text: str, offset: int) -> tuple[_Node, int]:
    members: dict[str, tuple[int, _Node]] = {}
    at = _skip(text, offset + 1)
    while text[at] != "}":
        key, end = scanstring(text, at + 1)
        node, after = _read(text, _skip(text, _skip(text, end) + 1))
        members[key] = (at, node)
        at = _skip(text, after)
        at = _skip(text, at + 1) if text[at] == "," else at
    return _Node(members, offset), at + 1


def _object(
    node: _Node, enclosing: list[Descriptor], path: str, text: str, problems: list[Problem]
) -> None:
    if not isinstance(node.value, dict) or enclosing[-1].full_name.startswith(_STRUCTS):
        return  # json_format itself names a value of the wrong shape
    for key, (offset, value) in node.value.items():
        here = enclosing[-1]
        field = here.fields_by_name.get(key) or here.fields_by_camelcase_name.get(key)
        if field is None:
            problems.append(unknown_field(key, join(path, key), enclosing, place(text, offset)))
        else:
            _member(field, value, enclosing, join(path, field.name), text, problems)


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
    many = field.is_repeated and isinstance(node.value, list)
    items = node.value if many else [node]
    for index, item in enumerate(items):  # type: ignore[arg-type]
        at = f"{path}[{index}]" if many else path
        if is_message(field):
            if isinstance(item.value, dict):
                _object(item, [*enclosing, field.message_type], at, text, problems)
            elif not field.message_type.full_name.startswith(_STRUCTS):
                problems.append(wrong_value(field, str(item.value), at, place(text, item.offset)))
        elif field.enum_type is not None and isinstance(item.value, str):
            if item.value not in field.enum_type.values_by_name:
                problems.append(wrong_value(field, item.value, at, place(text, item.offset)))
