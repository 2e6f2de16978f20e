# SPDX-License-Identifier: Apache-2.0
"""Arrow columns of every accepted type as `Bags` and `Pairs`, without a Python loop over rows.

Missing is what is null, an empty string, or NaN. A missing row has no value; a missing step of a
sequence is a step without value; a missing element among several is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tzgen.features.bags import I64, BadValue, Bags, Flat, Pairs, ranges, single, starts_of

_KEY_VALUE = ":"


@dataclass(frozen=True)
class Layout:
    """How a column is cut.

    sequence      rows are sequences of steps, else one bag
    separator     between the values of one bag in a string
    delimiter     between the steps of a sequence in a string
    limit         steps that are kept of a sequence, the newest; 0 keeps all
    newest_first  whether the newest step comes first, else last
    weighted      values are "id:weight" texts, or a map of id to weight
    """

    sequence: bool = False
    separator: str = "\x1d"
    delimiter: str = ";"
    limit: int = 0
    newest_first: bool = False
    weighted: bool = False


def read_bags(column: pa.Array, layout: Layout) -> Bags:
    """One column as bags; see `Layout`."""
    column = _plain(column)
    if not layout.sequence:
        return _read_items(column, layout, None, 0)
    steps, items = _split_rows(column, layout.delimiter)
    cut = 0
    if layout.limit and steps.size and int(steps.max()) > layout.limit:
        cut = int((steps > layout.limit).sum())
        kept = np.minimum(steps, layout.limit)
        starts = starts_of(steps)
        if not layout.newest_first:
            starts += steps - kept
        items, steps = items.take(pa.array(ranges(starts, kept))), kept
    return _read_items(items, layout, steps, cut)


def read_pairs(column: pa.Array, separator: str) -> Pairs:
    """A map column, or texts "key:item" cut by `separator` (or in a list), as one map per row."""
    column = _plain(column)
    if pa.types.is_map(column.type):
        lengths, entries = _unnest(column)
        keys, items = entries.field(0), _plain(entries.field(1))
        valid = _present(items)
        if valid is not None:
            lengths = _count(valid, lengths)
            keys, items = keys.filter(pa.array(valid)), items.filter(pa.array(valid))
        return Pairs(_flat(_plain(keys)), _flat(items), lengths)
    bags = read_bags(column, Layout(separator=separator))
    return pairs_of(bags)


def pairs_of(bags: Bags) -> Pairs:
    """Texts "key:item" as maps."""
    keys, items = _split_pair(bags, bags.values, reverse=False)
    return Pairs(keys, items, bags.all_lengths())


_SIGNED = frozenset(t.id for t in (pa.int8(), pa.int16(), pa.int32(), pa.int64()))
_INTEGERS = _SIGNED | frozenset(t.id for t in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()))
_FLOATS = frozenset((pa.float32().id, pa.float64().id))
_NUMBERS = _INTEGERS | _FLOATS
_TEXTS = frozenset((pa.string().id, pa.large_string().id))
_LISTS = frozenset(
    t.id for t in (pa.list_(pa.int8()), pa.large_list(pa.int8()), pa.list_(pa.int8(), 1))
)
_MAP = pa.map_(pa.int8(), pa.int8()).id
_DICTIONARY = pa.dictionary(pa.int8(), pa.int8()).id
_READY = _NUMBERS | _TEXTS | _LISTS | {_MAP}


def _plain(column: pa.Array) -> pa.Array:
    """The column as one of: integers, floats, strings, dictionary of strings, list, map."""
    kind = column.type
    if kind.id in _READY:
        return column
    if kind.id == _DICTIONARY:
        small = len(column.dictionary) <= len(column)
        if pa.types.is_string(kind.value_type) and small and column.dictionary.null_count == 0:
            return column
        return _plain(column.dictionary_decode())
    if pa.types.is_null(kind):
        return pa.nulls(len(column), pa.string())
    if pa.types.is_run_end_encoded(kind):
        return _plain(pc.run_end_decode(column))
    if pa.types.is_boolean(kind):
        return column.cast(pa.uint8())
    if pa.types.is_float16(kind):
        return column.cast(pa.float32())
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64())
    if pa.types.is_string_view(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column.cast(pa.large_string())
    if pa.types.is_list_view(kind):
        return column.cast(pa.list_(kind.value_type))
    if isinstance(column, pa.ExtensionArray):
        return _plain(column.storage)
    raise BadValue(
        found=f"type {kind}",
        expected="integers, floats, strings, a list or a map of them",
        remedy="Convert the column where it is written; times are integers.",
    )


def _unnest(column: pa.Array) -> tuple[I64, pa.Array]:
    """Values per row (0 for null) and the values of a list, large_list, fixed_size_list or map."""
    if pa.types.is_map(column.type):
        entry = pa.struct([("key", column.type.key_type), ("value", column.type.item_type)])
        column = column.cast(pa.list_(entry))  # maps cannot be flattened
    if pa.types.is_fixed_size_list(column.type):
        lengths = np.full(len(column), column.type.list_size, np.int64)
    else:
        offsets = np.asarray(column.offsets)
        lengths = (offsets[1:] - offsets[:-1]).astype(np.int64)
    if column.null_count:
        lengths[np.asarray(column.is_null())] = 0
    return lengths, column.flatten()


def _split_rows(column: pa.Array, delimiter: str) -> tuple[I64, pa.Array]:
    """Steps per row, and one item per step (a value, or a list of values; possibly null)."""
    if column.type.id == _DICTIONARY:
        column = column.dictionary_decode()
    kind = column.type.id
    if kind in _LISTS:
        steps, items = _unnest(column)
        return steps, _plain(items)
    if kind in _TEXTS:
        return _unnest(pc.split_pattern(_empty_to_null(column), delimiter))
    if kind in _NUMBERS:
        valid = _present(column)
        if valid is None:
            return np.ones(len(column), np.int64), column
        return valid.astype(np.int64), column.filter(pa.array(valid))
    raise BadValue(
        found=f"type {column.type}",
        expected="a sequence: a list, or a string with delimiters",
        remedy="Store one list per row.",
    )


def _read_items(items: pa.Array, layout: Layout, steps: I64 | None, cut: int) -> Bags:
    lengths: I64 | None = None
    if layout.weighted and items.type.id == _MAP:
        pairs = read_pairs(items, layout.separator)
        return Bags(pairs.keys, pairs.lengths, steps, _weights(pairs.items), cut)
    if items.type.id in _LISTS:
        lengths, items = _unnest(items)
        items = _plain(items)
    elif items.type.id == _DICTIONARY and (
        _any_empty(items.dictionary) or _contains(items.dictionary, layout.separator)
    ):
        items = items.dictionary_decode()
    if items.type.id in _TEXTS and lengths is None and _contains(items, layout.separator):
        lengths, items = _unnest(pc.split_pattern(_empty_to_null(items), layout.separator))
    if items.type.id not in _NUMBERS | _TEXTS | {_DICTIONARY}:
        raise BadValue(
            found=f"type {items.type} inside one {'row' if steps is None else 'step'}",
            expected="numbers or strings",
            remedy="Is the feature meant to be a sequence? Then use its sequence_ form.",
        )
    valid = _present(items)
    if valid is not None:
        lengths = valid.astype(np.int64) if lengths is None else _count(valid, lengths)
        items = items.filter(pa.array(valid))
    bags = Bags(_flat(items), lengths, steps, cut=cut)
    if layout.weighted:
        keys, weights = _split_pair(bags, bags.values, reverse=True)
        bags = Bags(keys, lengths, steps, _weights(weights), cut)
    return single(bags)


def _present(items: pa.Array) -> NDArray[np.bool_] | None:
    """Which values are not missing; None where all are there."""
    valid: NDArray[np.bool_] | None = None
    if items.null_count:
        valid = np.asarray(items.is_valid())
    kind = items.type.id
    if kind in _FLOATS:
        values = items.to_numpy(zero_copy_only=False)  # nulls read as NaN
        # The smallest of some numbers is NaN if one of them is: one pass, nothing allocated.
        return ~np.isnan(values) if values.size and np.isnan(values.min()) else valid
    if kind in _TEXTS and _any_empty(items):
        filled = np.asarray(pc.fill_null(pc.greater(pc.binary_length(items), 0), False))
        return filled
    return valid


def _count(valid: NDArray[np.bool_], lengths: I64) -> I64:
    """How many of each bag's values are valid."""
    before = np.concatenate([[0], np.cumsum(valid)])
    ends = np.cumsum(lengths)
    return (before[ends] - before[ends - lengths]).astype(np.int64)


def _flat(items: pa.Array) -> Flat:
    """Numbers as numpy (a view of the column where that is possible), strings as they are."""
    if items.type.id in _NUMBERS:
        return items.to_numpy(zero_copy_only=False)
    return items.cast(pa.string()) if items.type == pa.large_string() else items


def _text_buffer(strings: pa.Array) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Offsets [T + 1] and all bytes of a string or large_string array."""
    width = np.int64 if pa.types.is_large_string(strings.type) else np.int32
    _, offsets, data = strings.buffers()
    if offsets is None or len(strings) == 0:
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    view = np.frombuffer(offsets, width)[strings.offset : strings.offset + len(strings) + 1]
    return view, np.frombuffer(b"" if data is None else data, np.uint8)


def _any_empty(strings: pa.Array) -> bool:
    offsets, _ = _text_buffer(strings)
    return bool((offsets[1:] == offsets[:-1]).any())


def _contains(strings: pa.Array, separator: str) -> bool:
    if len(separator.encode()) != 1:
        return bool(separator) and bool(pc.any(pc.match_substring(strings, separator)).as_py())
    offsets, data = _text_buffer(strings)
    return bool((data[offsets[0] : offsets[-1]] == ord(separator)).any())


def _empty_to_null(strings: pa.Array) -> pa.Array:
    if not _any_empty(strings):
        return strings
    return pc.if_else(
        pc.greater(pc.binary_length(strings), 0), strings, pa.scalar(None, strings.type)
    )


def _split_pair(bags: Bags, values: Flat, *, reverse: bool) -> tuple[pa.Array, pa.Array]:
    """ "a:b" as a and b; `reverse` cuts at the last colon, so that ids may have some."""
    if isinstance(values, np.ndarray):
        raise BadValue(
            found="numbers",
            expected='texts "key:value", or a map',
            remedy="Is this the map column?",
        )
    if isinstance(values, pa.DictionaryArray):
        values = values.dictionary_decode()
    parts = pc.split_pattern(values, _KEY_VALUE, max_splits=1, reverse=reverse)
    lengths, pieces = _unnest(parts)
    if (lengths != 2).any():
        at = int(np.flatnonzero(lengths != 2)[0])
        raise BadValue(
            found=repr(values[at].as_py()),
            expected='"key:value"',
            remedy="Repair the value, or check the feature's separator.",
            row=bags.row_of(at),
        )
    halves = np.arange(0, len(pieces), 2)
    return pieces.take(pa.array(halves)), pieces.take(pa.array(halves + 1))


def _weights(values: Flat) -> NDArray[np.float32]:
    if not isinstance(values, np.ndarray):
        try:
            values = pc.cast(values, pa.float32()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid as error:
            raise BadValue(
                found=str(error),
                expected="a number after the colon",
                remedy="Repair the weight.",
            ) from error
    return values.astype(np.float32)
