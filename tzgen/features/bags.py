# SPDX-License-Identifier: Apache-2.0
"""Rows of any number of values, laid end to end, and the vectorised moves on them.

T values, N bags, B rows. A bag is a row, or one step of a row's sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

I64 = NDArray[np.int64]
Flat = Any  # numpy array of numbers, or Arrow array of strings (plain or dictionary); never null


class BadValue(Exception):
    """A value that cannot be used. The parser, which knows file and row, makes it a DataError."""

    def __init__(self, *, found: str, expected: str, remedy: str, row: int | None = None) -> None:
        self.found, self.expected, self.remedy, self.row = found, expected, remedy, row
        super().__init__(f"found {found}; expected {expected}. {remedy}")


@dataclass(frozen=True)
class Bags:
    """N bags of values.

    values   [T] numpy numbers, or an Arrow string array without nulls
    lengths  int64 [N] values per bag; None where every bag has exactly one
    steps    int64 [B] bags per row of a sequence; None where a row is a bag
    weights  float32 [T] or None
    cut      rows whose oldest steps were dropped
    """

    values: Flat
    lengths: I64 | None = None
    steps: I64 | None = None
    weights: NDArray[np.float32] | None = None
    cut: int = 0

    @property
    def num_bags(self) -> int:
        return len(self.values) if self.lengths is None else self.lengths.size

    def all_lengths(self) -> I64:
        return np.ones(len(self.values), np.int64) if self.lengths is None else self.lengths

    def bag_of(self, element: int) -> int:
        if self.lengths is None:
            return element
        return int(np.searchsorted(np.cumsum(self.lengths), element, side="right"))

    def row_of_bag(self, bag: int) -> int:
        if self.steps is None:
            return bag
        return int(np.searchsorted(np.cumsum(self.steps), bag, side="right"))

    def row_of(self, element: int) -> int:
        return self.row_of_bag(self.bag_of(element))


@dataclass(frozen=True)
class Pairs:
    """A map per row: keys [T] and items [T] as in `Bags.values`, lengths int64 [B]."""

    keys: Flat
    items: Flat
    lengths: I64


def is_text(values: Flat) -> bool:
    return not isinstance(values, np.ndarray)


def is_dictionary(values: Flat) -> bool:
    return isinstance(values, pa.DictionaryArray)


def take(values: Flat, index: I64) -> Flat:
    return values[index] if isinstance(values, np.ndarray) else values.take(pa.array(index))


def ranges(starts: I64, lengths: I64) -> I64:
    """starts[0], starts[0] + 1, ... (lengths[0] of them), then starts[1], ..."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


def starts_of(lengths: I64) -> I64:
    return np.cumsum(lengths) - lengths


def within(lengths: I64) -> I64:
    """0 .. lengths[0] - 1, 0 .. lengths[1] - 1, ..."""
    return ranges(np.zeros_like(lengths), lengths)


def select(bags: Bags, index: I64, steps: I64 | None) -> Bags:
    """The bags at `index`, as the bags of rows with `steps`."""
    if bags.lengths is None:
        chosen, lengths = index, None
    else:
        lengths = bags.lengths[index]
        chosen = ranges(starts_of(bags.lengths)[index], lengths)
    weights = None if bags.weights is None else bags.weights[chosen]
    return Bags(take(bags.values, chosen), lengths, steps, weights, bags.cut)


def align(inputs: Sequence[Bags]) -> list[Bags]:
    """Inputs of one row per bag are repeated for every step of the inputs that are sequences."""
    sequences = [bags.steps for bags in inputs if bags.steps is not None]
    if not sequences:
        return list(inputs)
    steps = sequences[0]
    for other in sequences[1:]:
        if not np.array_equal(other, steps):
            row = int(np.flatnonzero(other != steps)[0])
            raise BadValue(
                found=f"inputs of {steps[row]} and {other[row]} steps",
                expected="sequence inputs of one feature to have equal lengths",
                remedy="Repair the columns, or name the sequence inputs in sequence_fields.",
                row=row,
            )
    rows = np.repeat(np.arange(steps.size), steps)
    return [bags if bags.steps is not None else select(bags, rows, steps) for bags in inputs]


def fill(bags: Bags, default: Flat) -> Bags:
    """Empty bags get the default's values (weight 1)."""
    if bags.lengths is None:
        return bags
    empty = bags.lengths == 0
    if empty.any() and len(default):
        lengths = np.where(empty, len(default), bags.lengths)
        starts = starts_of(bags.lengths)
        starts[empty] = len(bags.values)
        index = ranges(starts, lengths)
        values, weights = take(concatenate(bags.values, default), index), bags.weights
        if weights is not None:
            weights = np.concatenate([weights, np.ones(len(default), np.float32)])[index]
        bags = replace(bags, values=values, lengths=lengths, weights=weights)
    return single(bags)


def single(bags: Bags) -> Bags:
    """Say so (`lengths` None) where every bag has exactly one value."""
    lengths = bags.lengths
    if lengths is None or lengths.size != len(bags.values) or not (lengths == 1).all():
        return bags
    return replace(bags, lengths=None)


def head(bags: Bags, count: int) -> Bags:
    """At most the first `count` values of each bag."""
    if bags.lengths is None or not bags.lengths.size or int(bags.lengths.max()) <= count:
        return bags
    lengths = np.minimum(bags.lengths, count)
    index = ranges(starts_of(bags.lengths), lengths)
    weights = None if bags.weights is None else bags.weights[index]
    return single(replace(bags, values=take(bags.values, index), lengths=lengths, weights=weights))


def concatenate(first: Flat, second: Flat) -> Flat:
    """Both as text where either is."""
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.concatenate([first, second])
    return pa.concat_arrays([text(first), text(second)])


def text(values: Flat) -> pa.Array:
    """Arrow string array; numbers as decimal text, as Arrow prints them."""
    if isinstance(values, np.ndarray):
        return pc.cast(pa.array(values), pa.string())
    if is_dictionary(values):
        values = values.dictionary_decode()
    return values if values.type == pa.string() else values.cast(pa.string())


def numbers(bags: Bags) -> Bags:
    """Texts parsed as float64; numbers as they are."""
    if isinstance(bags.values, np.ndarray):
        return bags
    return replace(bags, values=_parse(bags, pa.float64(), _NUMBER, "a number"))


def integers(bags: Bags) -> Bags:
    """Values as int64; texts are parsed, floats have to be whole."""
    values = bags.values
    if not isinstance(values, np.ndarray):
        return replace(bags, values=_parse(bags, pa.int64(), _INTEGER, "an integer"))
    if values.dtype == np.int64:
        return bags
    if values.dtype.kind == "f":
        whole = values == np.floor(values)
        if not whole.all():
            at = int(np.flatnonzero(~whole)[0])
            raise BadValue(
                found=f"{values[at]}",
                expected="an integer",
                remedy="Store ids as integers or strings.",
                row=bags.row_of(at),
            )
    return replace(bags, values=values.astype(np.int64))


_INTEGER = r"^-?[0-9]+$"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*([eE][+-]?[0-9]+)?|\.[0-9]+([eE][+-]?[0-9]+)?|[iI]nf|[nN]a[nN])$"


def _parse(bags: Bags, kind: pa.DataType, pattern: str, expected: str) -> NDArray[Any]:
    strings = text(bags.values)
    try:
        return pc.cast(strings, kind).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        valid = pc.match_substring_regex(strings, pattern).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(~valid)
        at = int(wrong[0]) if wrong.size else None
        raise BadValue(
            found=str(error) if at is None else repr(strings[at].as_py()),
            expected=expected,
            remedy="Repair the value, or check the separators of the feature.",
            row=None if at is None else bags.row_of(at),
        ) from error
