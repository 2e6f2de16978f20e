# SPDX-License-Identifier: Apache-2.0
"""Values to ids: hashing, integers as they are, cut points. Vocabularies are in vocabulary.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tzgen.features.bags import I64, Bags, Flat, integers, is_dictionary, numbers, text
from tzgen.features.hashing import hash_integers, hash_strings, remainder

_MEMO_LIMIT = 1 << 21  # ids of integers below this are remembered: at most 8 MB a feature
_SAMPLE = 256


class Buckets(Protocol):
    """A function from values to ids int64 [T]; `verbatim` ids have yet to be checked for range."""

    num_embeddings: int
    verbatim: bool

    def __call__(self, bags: Bags) -> I64: ...


class TextBuckets(ABC):
    """Ids of texts; an integer is its decimal text.

    Repeated texts are encoded once. The ids of small non-negative integers are kept in an array
    that grows with what was seen, so that they cost one look-up each.
    """

    verbatim = False

    def __init__(self, num_embeddings: int) -> None:
        self.num_embeddings = num_embeddings
        self._id_type = np.int32 if num_embeddings < 2**31 else np.int64
        self._memo: NDArray[np.signedinteger] = np.empty(0, self._id_type)
        self._missed = 0

    @abstractmethod
    def encode(self, texts: pa.Array) -> I64:
        """int64 [T] ids of a string array without nulls."""

    def __call__(self, bags: Bags) -> I64:
        values = bags.values
        if isinstance(values, np.ndarray):
            return (
                self._integers(values) if values.dtype.kind in "iu" else self._texts(text(values))
            )
        if is_dictionary(values):
            codes = values.indices.to_numpy(zero_copy_only=False)
            return self.encode(text(values.dictionary))[codes]
        return self._texts(values)

    def _texts(self, texts: pa.Array) -> I64:
        if few_distinct(texts):
            encoded = texts.dictionary_encode()
            return self.encode(encoded.dictionary)[encoded.indices.to_numpy()]
        return self.encode(texts)

    def _integers(self, values: NDArray[np.integer]) -> I64:
        wide = values.astype(np.int64, copy=False)
        unsigned = wide.view(np.uint64)  # negative ones read as huge
        if not wide.size or int(unsigned.max()) < self._memo.size:
            return self._memo.take(wide).astype(np.int64)
        new = unsigned >= self._memo.size
        if self._grow(int(new.sum())):
            return self._integers(values)
        out = np.empty(wide.size, np.int64)
        known = np.flatnonzero(~new)
        out[known] = self._memo[wide[known]]
        out[new] = self._distinct_integers(values[new])
        return out

    def _grow(self, missed: int) -> bool:
        """Make the memo as large as the number of values that it missed, which paid for it."""
        self._missed += missed
        size = min(1 << self._missed.bit_length(), _MEMO_LIMIT)
        if size <= self._memo.size:
            return False
        new = self.encode_integers(np.arange(self._memo.size, size)).astype(self._id_type)
        self._memo = np.concatenate([self._memo, new])
        return True

    def _distinct_integers(self, values: NDArray[np.integer]) -> I64:
        array = pa.array(values)
        if few_distinct(array):
            encoded = array.dictionary_encode()
            return self.encode_integers(encoded.dictionary.to_numpy())[encoded.indices.to_numpy()]
        return self.encode_integers(values)

    def encode_integers(self, values: NDArray[np.integer]) -> I64:
        """int64 [T] ids of integers, as of their decimal texts."""
        return self.encode(text(values))


class HashBuckets(TextBuckets):
    """XXH64 of the UTF-8 text, seed 0, modulo the number of rows."""

    def encode(self, texts: pa.Array) -> I64:
        return remainder(hash_strings(texts), self.num_embeddings)

    def encode_integers(self, values: NDArray[np.integer]) -> I64:
        return remainder(hash_integers(values), self.num_embeddings)


class IntegerBuckets:
    """The integer is the id; the parser checks the range."""

    verbatim = True

    def __init__(self, num_embeddings: int) -> None:
        self.num_embeddings = num_embeddings

    def __call__(self, bags: Bags) -> I64:
        values: I64 = integers(bags).values
        return values


class Boundaries:
    """Bucket i holds boundaries[i - 1] < x <= boundaries[i], compared as float32."""

    verbatim = False

    def __init__(self, boundaries: Sequence[float]) -> None:
        self._boundaries = np.asarray(boundaries, np.float32)
        self.num_embeddings = self._boundaries.size + 1

    def __call__(self, bags: Bags) -> I64:
        values = numbers(bags).values.astype(np.float32, copy=False)
        return np.searchsorted(self._boundaries, values, side="left")


def few_distinct(values: Flat) -> bool:
    """Whether encoding the distinct values alone is likely to be cheaper; looks at the first."""
    if len(values) < 2 * _SAMPLE:
        return False
    return bool(pc.count_distinct(values.slice(0, _SAMPLE)).as_py() < 0.7 * _SAMPLE)
