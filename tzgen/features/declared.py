# SPDX-License-Identifier: Apache-2.0
"""Columns in the types that data_config.input_fields declares, for rows that are synthesised."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tzgen.errors import UserError
from tzgen.features.arrow import Layout, read_pairs


def as_declared(name: str, column: pa.Array, kind: pa.DataType, layout: Layout) -> pa.Array:
    """`column` as `kind`: texts are joined by the separators of `layout`, lists get one element.

    Raises UserError where what the features read cannot be held by the declared type.
    """
    try:
        return _converted(column, kind, layout)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(
            f"column {name!r}: found the declaration {kind} in data_config.input_fields; expected "
            f"a type that can hold {column.type}, which its features read. Correct one of the two."
        ) from error


def _converted(column: pa.Array, kind: pa.DataType, layout: Layout) -> pa.Array:
    if column.type == kind:
        return column
    if pa.types.is_string(kind):
        return _joined(column, layout)
    if pa.types.is_map(kind):
        return _mapped(column, kind, layout)
    if pa.types.is_list(kind) and not pa.types.is_list(column.type):
        inner = _converted(column, kind.value_type, layout)
        return pa.ListArray.from_arrays(pa.array(range(len(column) + 1), pa.int32()), inner)
    if pa.types.is_list(kind):
        inner = _converted(column.values, kind.value_type, replace(layout, sequence=False))
        return pa.ListArray.from_arrays(column.offsets, inner)
    return pc.cast(column, kind, safe=False)


def _joined(column: pa.Array, layout: Layout) -> pa.Array:
    """Steps joined by the delimiter, values of one step by the separator, maps as "key:value"."""
    if pa.types.is_map(column.type):
        keys, items = (pc.cast(part, pa.string()) for part in (column.keys, column.items))
        pairs = pc.binary_join_element_wise(keys, items, ":")
        lists = pa.ListArray.from_arrays(column.offsets, pairs)
        return pc.binary_join(lists, layout.separator)
    if not pa.types.is_list(column.type):
        return pc.cast(column, pa.string())
    inner = _joined(column.values, replace(layout, sequence=False))
    between = layout.delimiter if layout.sequence else layout.separator
    return pc.binary_join(pa.ListArray.from_arrays(column.offsets, inner), between)


def _mapped(column: pa.Array, kind: pa.MapType, layout: Layout) -> pa.Array:
    """Texts "key:value", or a map of other types."""
    pairs = read_pairs(column, layout.separator)
    offsets = np.concatenate([[0], np.cumsum(pairs.lengths)]).astype(np.int32)
    return pa.MapArray.from_arrays(
        offsets,
        pc.cast(pa.array(pairs.keys), kind.key_type),
        pc.cast(pa.array(pairs.items), kind.item_type, safe=False),
    )
