# SPDX-License-Identifier: Apache-2.0
"""`--set path.to.field=value` and TorchEasyRec's `--edit_config_json`, typed from the descriptors.

train_config.num_steps=100                    a number, bool, string or enum name as it is written
train_config.num_epochs=                      nothing: the field is unset (a string becomes "")
feature_configs[3].id_feature.num_buckets=10  an element; [-1] the last, [:] and [1:3] several
feature_configs[id_feature.feature_name=user_id].id_feature.embedding_dim=16   elements by a value
data_config.label_fields[+]=is_like           append; a path may go on below [+]
...action_weights=[1, 2]                      a whole list, in text format
...output_postprocessor={layernorm_postprocessor {}}    a whole message, in text format
...vocab_dict["a"]=3                          an entry of a map
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tzgen.config import text_scan
from tzgen.config.path import (
    RefusedPath,
    Step,
    find_field,
    indices,
    parse_path,
    refuse_index,
    targets,
)
from tzgen.config.schema import is_map, is_message, parse_scalar, type_name, wrong_value
from tzgen.errors import ConfigError, Problem, UserError


def apply_overrides(config: Message, overrides: Sequence[str]) -> None:
    """Apply "path=value" texts in order, in place. ConfigError names every one that is wrong."""
    problems: list[Problem] = []
    for override in overrides:
        path, equals, value = _split(override)
        if not equals:
            problems.append(
                Problem(
                    f"--set {override}",
                    "no '='",
                    "path.to.field=value",
                    "Write the value after '='.",
                )
            )
            continue
        problems += _collect(config, path, value, f"--set {path}")
    if problems:
        raise ConfigError(problems, "--set")


def apply_edit_json(config: Message, text: str) -> None:
    """Apply TorchEasyRec's `--edit_config_json`: an object of path -> value, in place.

    Its form "a;b": "1;2", several paths and values in one entry, is accepted.
    """
    try:
        edits = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"--edit_config_json: line {error.lineno}, column {error.colno}: not JSON: {error.msg}."
        ) from None
    if not isinstance(edits, dict):
        raise UserError(f"--edit_config_json: found {text!r}; expected an object of path -> value.")
    problems: list[Problem] = []
    for paths, value in edits.items():
        separate = [path.strip() for path in paths.split(";")]
        values = value.split(";") if isinstance(value, str) and len(separate) > 1 else [value]
        if len(values) != len(separate):
            problems.append(
                Problem(
                    f"--edit_config_json {paths}",
                    f"{len(separate)} paths and {len(values)} values",
                    "one value for each path",
                    "Separate both with ';', or write one entry for each path.",
                )
            )
            continue
        for path, one in zip(separate, values, strict=True):
            problems += _collect(config, path, _as_text(one), f"--edit_config_json {path}")
    if problems:
        raise ConfigError(problems, "--edit_config_json")


def set_field(config: Message, path: str, value: str) -> None:
    """Set one field from text, in place; ConfigError when path or value do not fit the schema."""
    problems = _collect(config, path, value, path)
    if problems:
        raise ConfigError(problems, "override")


def _collect(config: Message, path: str, value: str, label: str) -> list[Problem]:
    try:
        steps = parse_path(path, label)
        for target in targets(config, steps[:-1], label):
            _assign(target, steps[-1], value, label)
    except RefusedPath as refused:
        return list(refused.problems)
    return []


def _split(override: str) -> tuple[str, str, str]:
    """At the first '=' outside of brackets, so that selectors may hold one."""
    depth = 0
    for index, character in enumerate(override):
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == "=" and depth == 0:
            return override[:index].strip(), "=", override[index + 1 :]
    return override, "", ""


def _as_text(value: object) -> str:
    """A JSON value in the text format that `--set` takes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    if isinstance(value, list):
        return f"[{', '.join(_element(item) for item in value)}]"
    if isinstance(value, Mapping):
        return _element(value)
    return str(value)


def _element(value: object) -> str:
    if isinstance(value, Mapping):
        members = (
            f"{name} {_element(v)}" if isinstance(v, Mapping) else f"{name}: {_element(v)}"
            for name, v in value.items()
        )
        return "{ " + " ".join(members) + " }"
    return json.dumps(value) if isinstance(value, str) else _as_text(value)


def _assign(message: Message, step: Step, text: str, label: str) -> None:
    field = find_field(message, step, label)
    if step.index is not None and not field.is_repeated:
        refuse_index(field, step, label)
    if is_map(field) and step.index is not None:
        _assign_entry(message, field, step.index, text, label)
    elif field.is_repeated and step.index is None:
        _assign_list(message, field, text, label)
    elif field.is_repeated:
        _assign_element(message, field, str(step.index), text, label)
    elif is_message(field):
        parsed = _parse_message(field, text, label)
        if text.strip():
            getattr(message, field.name).CopyFrom(parsed)
            getattr(message, field.name).SetInParent()
        else:
            message.ClearField(field.name)
    elif not text.strip() and field.type != FieldDescriptor.TYPE_STRING:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _scalar(field, text, label))


def _assign_entry(
    message: Message, field: FieldDescriptor, key: str, text: str, label: str
) -> None:
    entry = field.message_type.fields_by_name
    named = key.strip().strip("\"'")
    getattr(message, field.name)[_scalar(entry["key"], named, label)] = _scalar(
        entry["value"], text, label
    )


def _assign_list(message: Message, field: FieldDescriptor, text: str, label: str) -> None:
    body = text.strip()
    if body and not body.startswith("["):
        raise RefusedPath(
            Problem(
                label,
                repr(text),
                type_name(field),
                f"Write a whole list, {_example(field)}, or append with {field.name}[+]=...",
            )
        )
    scratch = type(message)()
    _parse_into(scratch, f"{field.name}: {body}" if body else "", label)
    message.ClearField(field.name)
    message.MergeFrom(scratch)


def _example(field: FieldDescriptor) -> str:
    """How a whole list is written on the command line."""
    return f"{field.name}=[{{ ... }}, {{ ... }}]" if is_message(field) else f"{field.name}=[a, b]"


def _assign_element(
    message: Message, field: FieldDescriptor, index: str, text: str, label: str
) -> None:
    items = getattr(message, field.name)
    if is_message(field):
        parsed = _parse_message(field, text, label)
        targets = (
            [items.add()]
            if index.strip() == "+"
            else [items[at] for at in indices(items, field, index, label)]
        )
        for target in targets:
            target.CopyFrom(parsed)
        return
    value = _scalar(field, text, label)
    if index.strip() == "+":
        items.append(value)
        return
    for at in indices(items, field, index, label):
        items[at] = value


def _scalar(field: FieldDescriptor, text: str, label: str) -> bool | int | float | str:
    """A string verbatim (quotes and escapes are read where it is quoted), else a typed value."""
    if field.type == FieldDescriptor.TYPE_STRING:
        if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
            try:
                return str(text_format.Tokenizer([text]).ConsumeString())
            except text_format.ParseError:
                raise RefusedPath(wrong_value(field, text, label)) from None
        return text
    try:
        return parse_scalar(field, text.strip().strip("\"'"))
    except ValueError:
        raise RefusedPath(wrong_value(field, text.strip(), label)) from None


def _parse_message(field: FieldDescriptor, text: str, label: str) -> Message:
    body = text.strip()
    parsed: Message = GetMessageClass(field.message_type)()
    if not body:
        return parsed
    if not (body.startswith("{") and body.endswith("}")):
        raise RefusedPath(wrong_value(field, body, label))
    _parse_into(parsed, body[1:-1], label)
    return parsed


def _parse_into(message: Message, text: str, label: str) -> None:
    """`message` is empty."""
    problems = text_scan.merge(text, message, label, positions=False)
    if problems:
        raise RefusedPath(*problems)
