# SPDX-License-Identifier: Apache-2.0
"""Features of several columns: combinations, look-ups in maps and in nested maps.

All are joins of integer codes: texts are coded together, a code is made unique to its row, and the
entries of all maps of a batch are searched at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tzgen.features.arrow import Layout, read_bags
from tzgen.features.bags import (
    I64,
    BadValue,
    Bags,
    Flat,
    Pairs,
    align,
    numbers,
    ranges,
    single,
    starts_of,
    take,
    text,
    within,
)
from tzgen.features.raw import Normalizer, normalised, split_numbers, summarise

_JOINER = "_"


def choices(lengths: Sequence[I64]) -> tuple[I64, list[I64]]:
    """Every choice of one value per input: how many a bag has [N], and their index per input."""
    product = np.prod(np.stack(lengths), axis=0)
    number = within(product)
    stride = np.repeat(product, product)
    chosen = []
    for counts in lengths:
        each = np.repeat(counts, product)
        stride = stride // each
        chosen.append(np.repeat(starts_of(counts), product) + number // stride % each)
    return product, chosen


def steps_of(inputs: Sequence[Bags]) -> I64 | None:
    return next((bags.steps for bags in inputs if bags.steps is not None), None)


def _join(parts: Sequence[pa.Array]) -> pa.Array:
    return pc.binary_join_element_wise(*parts, _JOINER)


@dataclass(frozen=True)
class Combination:
    """combo_feature: every choice of one value per input, joined by "_", the last fastest."""

    def __call__(self, inputs: Sequence[Bags]) -> Bags:
        inputs = align(inputs)
        steps = steps_of(inputs)
        if all(bags.lengths is None for bags in inputs):
            return Bags(_join([text(bags.values) for bags in inputs]), None, steps)
        product, chosen = choices([bags.all_lengths() for bags in inputs])
        parts = [text(take(b.values, at)) for b, at in zip(inputs, chosen, strict=True)]
        return single(Bags(_join(parts), product, steps))


@dataclass(frozen=True)
class ItemForm:
    """What becomes of the items that a look-up found.

    discrete   texts for a bucket function, none are combined
    combiner   else how several numbers of a bag become one; "" keeps all
    value_dim  more than 1: an item is that many numbers, cut by `separator`
    """

    discrete: bool
    combiner: str
    value_dim: int
    separator: str
    normalizer: Normalizer | None

    def __call__(self, bags: Bags) -> Bags:
        if self.discrete:
            return single(bags)
        if self.value_dim > 1:
            bags = split_numbers(bags, self.separator)
        else:
            bags = numbers(bags)
            bags = summarise(bags, self.combiner) if self.combiner else bags
        return single(normalised(bags, self.normalizer))


@dataclass(frozen=True)
class Lookup:
    """lookup_feature: the items of a row's map under the keys of a bag; `show_key`: "key_item"."""

    form: ItemForm
    show_key: bool

    def __call__(self, inputs: Sequence[Bags | Pairs]) -> Bags:
        entries, keys = inputs
        assert isinstance(entries, Pairs) and isinstance(keys, Bags), "a map and keys"
        lengths = keys.all_lengths()
        bags = np.repeat(np.arange(lengths.size), lengths)
        rows = _rows(keys.num_bags, keys.steps)[bags]
        entry_rows = np.repeat(np.arange(entries.lengths.size), entries.lengths)
        entry_codes, codes = _codes(entries.keys, keys.values)
        asked, found = _join_first(_unique(entry_rows, entry_codes), _unique(rows, codes))
        items = take(entries.items, found)
        if self.show_key:
            items = _join([text(take(keys.values, asked)), text(items)])
        counts = np.bincount(bags[asked], minlength=lengths.size).astype(np.int64)
        return self.form(Bags(items, counts, keys.steps))


def _rows(num_bags: int, steps: I64 | None) -> I64:
    """The row of each bag."""
    return np.arange(num_bags) if steps is None else np.repeat(np.arange(steps.size), steps)


def _codes(first: Flat, second: Flat) -> tuple[I64, I64]:
    """Integer codes such that equal texts have equal codes."""
    if _is_integer(first) and _is_integer(second):
        both = pa.array(np.concatenate([first.astype(np.int64), second.astype(np.int64)]))
    else:
        both = pa.concat_arrays([text(first), text(second)])
    codes = both.dictionary_encode().indices.to_numpy().astype(np.int64)
    return codes[: len(first)], codes[len(first) :]


def _is_integer(values: Flat) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind in "iu"


def _unique(rows: I64, codes: I64) -> I64:
    """A code that no other row has: rows and codes are both below 2**31."""
    return (rows << 32) | codes


def _join_first(entries: I64, asked: I64) -> tuple[I64, I64]:
    """(index into asked, index into entries) of every asked code that is there; its first entry."""
    if not entries.size:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order = np.argsort(entries, kind="stable")
    at = np.searchsorted(entries[order], asked)
    at[at == entries.size] = 0
    hit = np.flatnonzero(entries[order[at]] == asked)
    return hit, order[at[hit]]


def _join_all(entries: I64, asked: I64) -> tuple[I64, I64]:
    """The same with every entry of a code."""
    order = np.argsort(entries, kind="stable")
    ordered = entries[order]
    first = np.searchsorted(ordered, asked, side="left")
    counts = np.searchsorted(ordered, asked, side="right") - first
    return np.repeat(np.arange(asked.size), counts), order[ranges(first, counts)]


@dataclass(frozen=True)
class NestedPairs:
    """Nested maps of B rows, one entry per (outer key, inner key): texts [T]; rows int64 [T]."""

    outer: pa.Array
    inner: pa.Array
    items: pa.Array
    rows: I64
    num_rows: int


def read_nested(column: pa.Array) -> NestedPairs:
    """ "pk^sk:v,sk:v|pk^sk:v" per row."""
    outer = read_bags(column, Layout(separator="|"))
    if isinstance(outer.values, np.ndarray):
        raise BadValue(
            found="numbers",
            expected='texts "pk^sk:v,sk:v|pk^sk:v"',
            remedy="Is this the nested map column?",
        )
    keys, rest = _halves(outer, text(outer.values), "^")
    entries = read_bags(rest, Layout(separator=","))
    parent = np.repeat(np.arange(len(keys)), entries.all_lengths())
    rows = np.repeat(np.arange(outer.num_bags), outer.all_lengths())[parent]
    inner, items = _halves(Bags(entries.values, None), text(entries.values), ":")
    return NestedPairs(keys.take(pa.array(parent)), inner, items, rows, outer.num_bags)


def _halves(bags: Bags, texts: pa.Array, separator: str) -> tuple[pa.Array, pa.Array]:
    parts = pc.split_pattern(texts, separator, max_splits=1)
    wrong = np.flatnonzero(pc.list_value_length(parts).to_numpy() != 2)
    if wrong.size:
        raise BadValue(
            found=repr(texts[int(wrong[0])].as_py()),
            expected=f"two parts around {separator!r}",
            remedy='A nested map is "pk^sk:v,sk:v|pk^sk:v".',
        )
    pieces = parts.flatten()
    halves = np.arange(0, len(pieces), 2)
    return pieces.take(pa.array(halves)), pieces.take(pa.array(halves + 1))


@dataclass(frozen=True)
class Match:
    """match_feature: the items of a row's nested map under an outer and an inner key.

    A key that is absent (the wildcard ALL) matches every entry. The inputs after the map are the
    keys that are there, outer first.
    """

    form: ItemForm
    has_outer: bool
    has_inner: bool
    show_outer: bool
    show_inner: bool

    def __call__(self, inputs: Sequence[Bags | NestedPairs]) -> Bags:
        entries, *given = inputs
        assert isinstance(entries, NestedPairs), "a nested map"
        keys = align([bags for bags in given if isinstance(bags, Bags)])
        steps = steps_of(keys)
        num_bags = keys[0].num_bags if keys else entries.num_rows
        product = np.ones(num_bags, np.int64)
        chosen: list[I64] = []
        if keys:
            product, chosen = choices([bags.all_lengths() for bags in keys])
        bags = np.repeat(np.arange(num_bags), product)
        columns = [entries.outer] * self.has_outer + [entries.inner] * self.has_inner
        code = np.zeros(len(entries.items), np.int64)
        wanted = np.zeros(bags.size, np.int64)
        for column, key, at in zip(columns, keys, chosen, strict=True):
            code, wanted = _pair_codes(code, wanted, *_codes(column, take(key.values, at)))
        rows = _rows(num_bags, steps)[bags]
        asked, found = _join_all(_unique(entries.rows, code), _unique(rows, wanted))
        counts = np.bincount(bags[asked], minlength=num_bags).astype(np.int64)
        return self.form(Bags(self._items(entries, found), counts, steps))

    def _items(self, entries: NestedPairs, found: I64) -> pa.Array:
        shown = [entries.outer] * self.show_outer + [entries.inner] * self.show_inner
        parts = [column.take(pa.array(found)) for column in (*shown, entries.items)]
        return _join(parts) if shown else parts[0]


def _pair_codes(code: I64, wanted: I64, second: I64, also: I64) -> tuple[I64, I64]:
    """One small code for two, over entries (code, second) and wanted (wanted, also) together."""
    size = max(int(second.max(initial=0)), int(also.max(initial=0))) + 1
    both = np.concatenate([code * size + second, wanted * size + also])
    _, codes = np.unique(both, return_inverse=True)
    return codes[: code.size].astype(np.int64), codes[code.size :].astype(np.int64)
