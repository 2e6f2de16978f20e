# SPDX-License-Identifier: Apache-2.0
"""Rows of a record batch at given positions, lists as fast as memory allows.

Arrow takes lists element by element, but binary cells whole. A list of fixed-width values is the
same bytes as a binary cell, with offsets counted in bytes; a list of lists is two of them, one of
inner lengths and one of values, or the latter alone where all inner lists are equally long.
Measured 2 to 4 times faster than taking lists.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tzgen.data.order import Int64

FIXED_WIDTHS = (8, 16, 32, 64, 128)
INT32_MAX = np.iinfo(np.int32).max
Offsets = NDArray[np.int32]


def take_rows(rows: pa.RecordBatch, wanted: Int64) -> pa.RecordBatch:
    """`rows` at positions `wanted` int64 [n]; consecutive positions cost nothing."""
    if not len(wanted):
        return rows.slice(0, 0)
    if int(wanted[-1] - wanted[0]) + 1 == len(wanted) and bool((np.diff(wanted) == 1).all()):
        return rows.slice(int(wanted[0]), len(wanted))
    index = pa.array(wanted)
    columns = [_take(column, index) for column in rows.columns]
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)


def _take(column: pa.Array, index: pa.Array) -> pa.Array:
    kind = column.type
    if not pa.types.is_list(kind) or column.offset or not len(column):
        return column.take(index)
    child = column.values
    if child.offset or child.null_count or not len(child):
        return column.take(index)
    if _width(child.type):
        taken = _take_flat(column, child, index)
    else:
        taken = _take_nested(column, child, index)
    return column.take(index) if taken is None else taken


def _width(kind: pa.DataType) -> int:
    """Bytes of a value, 0 for what has no fixed number of them."""
    fixed = pa.types.is_primitive(kind) and kind.bit_width in FIXED_WIDTHS
    return kind.bit_width // 8 if fixed else 0


def _offsets(array: pa.Array) -> Offsets | None:
    """int32 offsets of a list, string or binary array; None where they do not fit."""
    offsets = np.frombuffer(array.buffers()[1], _offset_type(array.type), len(array) + 1)
    if int(offsets[-1]) > INT32_MAX:
        return None
    return offsets.astype(np.int32, copy=False)


def _take_cells(
    column: pa.Array, offsets: Offsets, width: int, data: pa.Buffer, index: pa.Array
) -> tuple[pa.Buffer | None, Offsets, pa.Buffer] | None:
    """(validity, offsets in values, data) of `column` at `index`; None where int32 does not do."""
    if not 0 < int(offsets[-1]) * width <= INT32_MAX:
        return None
    cells = pa.Array.from_buffers(
        pa.binary(),
        len(column),
        [column.buffers()[0], pa.py_buffer(offsets * np.int32(width)), data],
    ).take(index)
    validity, ends, taken = cells.buffers()
    shift = width.bit_length() - 1
    return validity, np.frombuffer(ends, np.int32, len(cells) + 1) >> shift, taken


def _take_flat(column: pa.Array, child: pa.Array, index: pa.Array) -> pa.Array | None:
    offsets = _offsets(column)
    assert offsets is not None, "a list has int32 offsets"
    cells = _take_cells(column, offsets, _width(child.type), child.buffers()[1], index)
    if cells is None:
        return None
    validity, ends, data = cells
    values = pa.Array.from_buffers(child.type, int(ends[-1]), [None, data])
    return pa.Array.from_buffers(
        column.type, len(index), [validity, pa.py_buffer(ends)], children=[values]
    )


def _take_nested(column: pa.Array, child: pa.Array, index: pa.Array) -> pa.Array | None:
    """A list of lists of fixed-width values, or of strings."""
    is_list = pa.types.is_list(child.type) or pa.types.is_large_list(child.type)
    if is_list:
        leaf = child.values
        if leaf.offset or leaf.null_count or not _width(leaf.type) or not len(leaf):
            return None
        width, data = _width(leaf.type), leaf.buffers()[1]
    elif child.type in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
        width, data = 1, child.buffers()[2]
    else:
        return None
    outer, inner = _offsets(column), _offsets(child)
    if outer is None or inner is None or data is None:
        return None
    values = _take_cells(column, inner[outer], width, data, index)
    if values is None:
        return None
    if common := _equal_lengths(inner):
        validity, ends, _ = values
        outer_ends = ends // np.int32(common)
        inner_ends = np.arange(int(outer_ends[-1]) + 1, dtype=_offset_type(child.type)) * common
    else:
        steps = _take_cells(column, outer, 4, pa.py_buffer(np.diff(inner)), index)
        if steps is None:
            return None
        validity, outer_ends, taken_lengths = steps
        inner_ends = np.zeros(int(outer_ends[-1]) + 1, _offset_type(child.type))
        np.cumsum(np.frombuffer(taken_lengths, np.int32, len(inner_ends) - 1), out=inner_ends[1:])
    buffers = [None, pa.py_buffer(inner_ends)]
    if is_list:
        flat = pa.Array.from_buffers(leaf.type, int(inner_ends[-1]), [None, values[2]])
        inside = pa.Array.from_buffers(child.type, int(outer_ends[-1]), buffers, children=[flat])
    else:
        inside = pa.Array.from_buffers(child.type, int(outer_ends[-1]), [*buffers, values[2]])
    return pa.Array.from_buffers(
        column.type, len(index), [validity, pa.py_buffer(outer_ends)], children=[inside]
    )


def _equal_lengths(offsets: Offsets) -> int:
    """The length of every list at `offsets`, counted from 0; 0 where they differ or are empty."""
    length = int(offsets[1] - offsets[0])
    same = np.arange(len(offsets), dtype=np.int64) * length
    return length if not offsets[0] and bool((offsets == same).all()) else 0


def _offset_type(kind: pa.DataType) -> type[np.int32] | type[np.int64]:
    large = kind in (pa.large_string(), pa.large_binary()) or pa.types.is_large_list(kind)
    return np.int64 if large else np.int32
