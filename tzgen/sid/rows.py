# SPDX-License-Identifier: Apache-2.0
"""Whole Parquet columns for offline work: a catalogue fits in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tzgen.data.readers import ParquetDataset
from tzgen.errors import UserError
from tzgen.sid.space import Ints

LARGEST_OFFSET = 2**31 - 1  # of a list that is not large


def read_all(
    reader: ParquetDataset, columns: Sequence[str], optional: Sequence[str] = ()
) -> pa.Table:
    """All rows of the columns, and of those `optional` ones that are there."""
    there = reader.schema.names
    missing = [name for name in columns if name not in there]
    if missing:
        raise UserError(
            f"{reader.files[0].path} has no column {missing[0]!r}; it has {', '.join(there)}"
        )
    names = list(dict.fromkeys([*columns, *(name for name in optional if name in there)]))
    batches = [
        reader.read_rows(file, group, names)
        for file, info in enumerate(reader.files)
        for group in range(len(info.group_rows))
    ]
    return pa.Table.from_batches(batches)


def lists(offsets: Ints, values: pa.Array, *, large: bool = False) -> pa.Array:
    """Lists of `values` between int64 offsets [N + 1]; large lists where int32 cannot count them,
    or where asked for."""
    if large or int(offsets[-1]) > LARGEST_OFFSET:
        return pa.LargeListArray.from_arrays(pa.array(offsets), values)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def equal_lists(values: np.ndarray[Any, Any], *, large: bool = False) -> pa.Array:
    """An array [N, S] as N lists."""
    offsets = np.arange(len(values) + 1, dtype=np.int64) * values.shape[1]
    return lists(offsets, pa.array(values.reshape(-1)), large=large)


def matrix(column: pa.ChunkedArray, name: str, dtype: Any = np.int64) -> np.ndarray[Any, Any]:
    """A list column of one length as an array [N, length]; nulls and ragged rows are named."""
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise UserError(f"column {name!r}, row {row}: found null; expected a list of numbers")
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(kind(column.type) for kind in kinds):
        raise UserError(f"column {name!r} is {column.type}; expected a list of numbers")
    lengths = np.asarray(pc.list_value_length(column).to_numpy())
    if len(lengths) and (lengths != lengths[0]).any():
        row = int((lengths != lengths[0]).argmax())
        raise UserError(
            f"column {name!r}, row {row}: found {lengths[row]} numbers; expected {lengths[0]}, as "
            "in the first row"
        )
    flat = pc.list_flatten(column)
    if flat.null_count:
        raise UserError(f"column {name!r} holds null inside a list: expected numbers")
    numbers = pa.types.is_integer(flat.type)
    if not numbers and (np.dtype(dtype).kind == "i" or not pa.types.is_floating(flat.type)):
        wanted = "integers" if np.dtype(dtype).kind == "i" else "numbers"
        raise UserError(f"column {name!r} holds lists of {flat.type}; expected lists of {wanted}")
    return np.array(flat.to_numpy(), dtype=dtype).reshape(len(lengths), -1)
