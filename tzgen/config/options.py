# SPDX-License-Identifier: Apache-2.0
"""A proto message as the frozen dataclass that a module is built from.

The schema is the only source of defaults: a dataclass of options has none, and a test holds its
fields equal to the message's (`fields_match`).
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Collection
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tzgen.config.schema import is_map, is_message

T = TypeVar("T")


def options(cls: type[T], message: Message, **given: Any) -> T:
    """Fill the dataclass `cls` from `message` by field name.

    - present: the value; absent with a default in the schema: that default; else None
    - oneof (a dataclass field with the oneof's name): (member name, options or message), or None
    - repeated: a tuple; map: a dict; enum: the value's name
    - nested message: the dataclass that the annotation names, or the message itself. A member of a
      oneof takes the annotated dataclass that has the message type's name, or that and "Options"

    `given` are fields of the dataclass that the message does not have (the model's max_seq_len).
    """
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for name in _names(cls):
        if name in given:
            if name in message.DESCRIPTOR.fields_by_name:
                raise ValueError(f"{cls.__name__}.{name} is given twice: {message.DESCRIPTOR.name}")
            values[name] = given[name]
        elif name in message.DESCRIPTOR.oneofs_by_name:
            values[name] = _oneof(message, name, _dataclasses(hints[name]))
        else:
            field = message.DESCRIPTOR.fields_by_name.get(name)
            if field is None:
                raise ValueError(f"{cls.__name__}.{name} is no field of {message.DESCRIPTOR.name}")
            values[name] = _value(message, field, _dataclasses(hints[name]))
    unknown = set(given) - set(values)
    if unknown:
        raise ValueError(f"{cls.__name__} has no fields {sorted(unknown)}")
    return cls(**values)


def fields_match(
    cls: type[Any],
    descriptor: Descriptor,
    unsupported: Collection[str] = (),
    given: Collection[str] = (),
) -> list[str]:
    """What keeps the fields of `cls` from being those of the message; [] when they agree.

    A member of a oneof counts as covered by the oneof's name. `unsupported` are message fields that
    the validator refuses by name, `given` dataclass fields that the message does not have.
    """
    mine = set(_names(cls))
    theirs = {
        field.containing_oneof.name if field.containing_oneof is not None else field.name
        for field in descriptor.fields
    }
    spelled = {field.name for field in descriptor.fields} | theirs
    found = [f"{cls.__name__} lacks {name}" for name in sorted(theirs - mine - set(unsupported))]
    found += [
        f"{cls.__name__}.{name} is no field of {descriptor.name}"
        for name in sorted(mine - theirs - set(given))
    ]
    found += [
        f"{name} is called unsupported and is used" for name in sorted(mine & set(unsupported))
    ]
    found += [
        f"{name} is called unsupported and is no field of {descriptor.name}"
        for name in sorted(set(unsupported) - spelled)
    ]
    return found


def _names(cls: type[Any]) -> list[str]:
    if not dataclasses.is_dataclass(cls):
        raise ValueError(f"{cls.__name__} is no dataclass")
    return [field.name for field in dataclasses.fields(cls)]


def _dataclasses(annotation: Any) -> list[type[Any]]:
    """The dataclasses in an annotation: X | None, tuple[X, ...], tuple[str, X | Y]."""
    if get_origin(annotation) is None:
        known = isinstance(annotation, type) and dataclasses.is_dataclass(annotation)
        return [annotation] if known else []
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        return [found for part in get_args(annotation) for found in _dataclasses(part)]
    return []


def _oneof(message: Message, name: str, known: list[type[Any]]) -> tuple[str, Any] | None:
    member = message.WhichOneof(name)
    if member is None:
        return None
    field = message.DESCRIPTOR.fields_by_name[member]
    if is_message(field):
        spelled = (field.message_type.name, f"{field.message_type.name}Options")
        known = [cls for cls in known if cls.__name__ in spelled]
    return member, _value(message, field, known)


def _value(message: Message, field: FieldDescriptor, known: list[type[Any]]) -> Any:
    value = getattr(message, field.name)
    if is_map(field):
        return dict(value)
    if field.is_repeated:
        return tuple(_one(item, field, known) for item in value)
    if message.HasField(field.name):
        return _one(value, field, known)
    if not is_message(field) and field.has_default_value:
        return _one(value, field, known)
    return None


def _one(value: Any, field: FieldDescriptor, known: list[type[Any]]) -> Any:
    if is_message(field):
        return options(known[0], value) if known else value
    return field.enum_type.values_by_number[value].name if field.enum_type is not None else value
