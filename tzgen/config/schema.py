# SPDX-License-Identifier: Apache-2.0
"""What the schema says about a name: its field, its type in words, the nearest known name.

Everything here reads descriptors, so a field added to protos/ is known without a change.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tzgen.errors import Problem

_NAMES = {
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
}
_SIGNED = (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64)
_LONG = (FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64)
_FLOATS = (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE)


def is_message(field: FieldDescriptor) -> bool:
    return bool(field.message_type is not None)


def is_map(field: FieldDescriptor) -> bool:
    return is_message(field) and bool(field.message_type.GetOptions().map_entry)


def type_name(field: FieldDescriptor) -> str:
    """'uint32', 'string, repeated', 'one of TRITON, PYTORCH', 'message STU', 'map of ...'."""
    if is_map(field):
        entry = field.message_type.fields_by_name
        return f"map of {type_name(entry['key'])} to {type_name(entry['value'])}"
    if is_message(field):
        name = f"message {field.message_type.name}"
    elif field.enum_type is not None:
        name = f"one of {', '.join(value.name for value in field.enum_type.values)}"
    else:
        name = _NAMES[field.type]
    return f"{name}, repeated" if field.is_repeated else name


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when nothing is near."""
    known = list(known)
    by_case = {candidate.lower(): candidate for candidate in known}
    if name.lower() in by_case:
        return by_case[name.lower()]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return near[0] if near else None


def suggestion(name: str, known: Iterable[str], limit: int = 60) -> str:
    """'Did you mean 'x'? Known: x, y, z.', with at most `limit` known names."""
    known = list(known)
    near = nearest(name, known)
    ask = f"Did you mean {near!r}? " if near else ""
    more = f" and {len(known) - limit} more" if len(known) > limit else ""
    return f"{ask}Known: {', '.join(known[:limit]) or 'none'}{more}."


def unknown_field(
    name: str, path: str, enclosing: Iterable[Descriptor], place: str = ""
) -> Problem:
    """`name` is no field of the innermost of the `enclosing` messages (root first).

    A name that an outer message, or a message directly below, does have was probably misplaced.
    """
    chain = list(enclosing)
    here = chain[-1]
    remedy = suggestion(name, [field.name for field in here.fields])
    outer = next((d.name for d in reversed(chain[:-1]) if name in d.fields_by_name), None)
    inner = next(
        (f for f in here.fields if is_message(f) and name in f.message_type.fields_by_name), None
    )
    if outer is not None:
        remedy = f"{outer} has this field: is a closing brace missing before it? {remedy}"
    elif inner is not None and not is_map(inner):
        remedy = f"It is a field of {inner.name} {{ }} inside {here.name}. {remedy}"
    return Problem(f"{place}{path}", f"unknown field {name!r}", f"a field of {here.name}", remedy)


def wrong_value(field: FieldDescriptor, text: str, path: str, place: str = "") -> Problem:
    """`text` cannot be read as a value of `field`."""
    if field.enum_type is not None:
        remedy = suggestion(text, [value.name for value in field.enum_type.values])
    elif field.type == FieldDescriptor.TYPE_STRING:
        remedy = f'Quote it: {field.name}: "{text.strip(chr(34) + chr(39))}".'
    elif is_message(field):
        remedy = f"Write {field.name} {{ ... }} with fields of {field.message_type.name}."
    else:
        remedy = f"Write a {_NAMES[field.type]}{_range(field)}."
    element = type_name(field).removesuffix(", repeated")
    return Problem(f"{place}{path}", repr(text), element, remedy)


def second_member(field: FieldDescriptor, other: str, path: str) -> Problem:
    """`field` stands beside `other`, a member of the same oneof."""
    return Problem(
        path,
        f"{field.name} beside {other}",
        f"one member of {field.containing_oneof.name}",
        f"Remove {other} or {field.name}.",
    )


def _range(field: FieldDescriptor) -> str:
    if field.type in _FLOATS or field.type in (
        FieldDescriptor.TYPE_BOOL,
        FieldDescriptor.TYPE_BYTES,
    ):
        return " (true or false)" if field.type == FieldDescriptor.TYPE_BOOL else ""
    bits = 64 if field.type in _LONG else 32
    low, high = (
        (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if field.type in _SIGNED else (0, 2**bits - 1)
    )
    return f" between {low} and {high}"


def parse_scalar(field: FieldDescriptor, text: str) -> bool | int | float:
    """The value of a number, bool or enum field written as text; ValueError where it is none."""
    if field.enum_type is not None:
        return int(text_format.ParseEnum(field, text))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return bool(text_format.ParseBool(text.lower() if text in ("True", "False") else text))
    if field.type in _FLOATS:
        return float(text_format.ParseFloat(text))
    return int(
        text_format.ParseInteger(text, is_signed=field.type in _SIGNED, is_long=field.type in _LONG)
    )


def walk(message: Message, path: str = "") -> Iterator[tuple[str, Message]]:
    """Every message that is set, outermost first, with its path ('' for the root)."""
    yield path, message
    prefix = f"{path}." if path else ""
    for field, value in message.ListFields():
        if not is_message(field) or is_map(field):
            continue
        if field.is_repeated:
            for index, item in enumerate(value):
                yield from walk(item, f"{prefix}{field.name}[{index}]")
        else:
            yield from walk(value, f"{prefix}{field.name}")


def join(path: str, name: str) -> str:
    """'a.b' from 'a' and 'b'; 'b' at the root."""
    return f"{path}.{name}" if path else name


def messages_of() -> dict[str, Descriptor]:
    """Every message that a PipelineConfig can hold, by its short name."""
    from tzgen.protos import pipeline_pb2

    found: dict[str, Descriptor] = {}
    pending: list[Descriptor] = [pipeline_pb2.PipelineConfig.DESCRIPTOR]
    while pending:
        descriptor = pending.pop()
        if found.setdefault(descriptor.name, descriptor) is not descriptor:
            continue
        for field in descriptor.fields:
            if is_message(field) and not is_map(field) and field.message_type.name not in found:
                pending.append(field.message_type)
    return found
