# SPDX-License-Identifier: Apache-2.0
"""Arrow types: FieldType names to types, and when the types of two files are one."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from tzgen.errors import UserError
from tzgen.protos import data_pb2

SCALARS: Mapping[str, pa.DataType] = {
    "INT32": pa.int32(),
    "INT64": pa.int64(),
    "STRING": pa.string(),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
}
ALIASES: Mapping[str, str] = {"BIGINT": "INT64", "INT": "INT32"}


def arrow_type(field_type: str) -> pa.DataType:
    """Arrow type of a FieldType name: `ARRAY_INT64`, `MAP_STRING_FLOAT`, also `ARRAY<BIGINT>`."""
    words = re.findall(r"[A-Z0-9]+", field_type.upper())
    found = _build([ALIASES.get(word, word) for word in words])
    if found is None:
        known = ", ".join(data_pb2.FieldType.keys())
        raise UserError(
            f"data_config: unknown column type {field_type!r}; known: {known}, "
            "BIGINT and INT for INT64 and INT32, and ARRAY<...>, MAP<...,...>."
        )
    return found


def _build(words: list[str]) -> pa.DataType | None:
    if len(words) == 1:
        return SCALARS.get(words[0])
    if words[:1] == ["ARRAY"]:
        inner = _build(words[1:])
        return None if inner is None else pa.list_(inner)
    if words[:1] == ["MAP"] and len(words) == 3 and set(words[1:]) <= set(SCALARS):
        return pa.map_(SCALARS[words[1]], SCALARS[words[2]])
    return None


def input_fields(config: data_pb2.DataConfig) -> dict[str, pa.DataType | None]:
    """Declared columns in order, None where the type is left to inference."""
    if config.input_fields_str and config.input_fields:
        raise UserError(
            "data_config: input_fields and input_fields_str are both set; keep one of them."
        )
    fields: dict[str, pa.DataType | None] = {}
    for part in filter(None, (part.strip() for part in config.input_fields_str.split(";"))):
        name, colon, type_name = part.partition(":")
        if not colon or not name.strip():
            raise UserError(
                f"data_config.input_fields_str: found {part!r}; expected name:TYPE. "
                'Write for example "user_id:BIGINT;tags:ARRAY<STRING>".'
            )
        fields[name.strip()] = arrow_type(type_name)
    for field in config.input_fields:
        name = data_pb2.FieldType.Name(field.input_type)
        fields[field.input_name] = arrow_type(name) if field.HasField("input_type") else None
    return fields


def plain(kind: pa.DataType) -> pa.DataType:
    """The everyday form of a type: list for large_list, string for large_string or dictionary."""
    if pa.types.is_dictionary(kind):
        return plain(kind.value_type)
    if (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    ):
        return pa.list_(plain(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(plain(kind.key_type), plain(kind.item_type))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    return kind


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """A type that holds both without changing a value, or None. All-null columns fit anything."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if plain(one) == plain(other):
        return plain(one)
    left, right = plain(one), plain(other)
    if pa.types.is_list(left) and pa.types.is_list(right):
        inner = common_type(left.value_type, right.value_type)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_map(left) and pa.types.is_map(right):
        key = common_type(left.key_type, right.key_type)
        item = common_type(left.item_type, right.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    return next((wide for wide, kind in ((left, right), (right, left)) if _holds(wide, kind)), None)


def _holds(wide: pa.DataType, kind: pa.DataType) -> bool:
    """Whether `wide` has every number of `kind`; integers and floats are apart."""
    if pa.types.is_floating(wide) and pa.types.is_floating(kind):
        return bool(wide.bit_width >= kind.bit_width)
    if not (pa.types.is_integer(wide) and pa.types.is_integer(kind)):
        return False
    if pa.types.is_signed_integer(wide) == pa.types.is_signed_integer(kind):
        return bool(wide.bit_width >= kind.bit_width)
    return bool(pa.types.is_signed_integer(wide) and wide.bit_width > kind.bit_width)


def conform(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The same rows with exactly the types of `schema` (which common_type has found to fit)."""
    columns = []
    for column, field in zip(rows.columns, schema, strict=True):
        columns.append(column if column.type == field.type else pc.cast(column, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)
