# SPDX-License-Identifier: Apache-2.0
"""Bucket functions: the memo never changes an id, whatever comes in whichever order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from tzgen.features import buckets
from tzgen.features.bags import Bags
from tzgen.features.buckets import Boundaries, HashBuckets, IntegerBuckets


def wanted(values: list[object], rows: int) -> list[int]:
    return [xxhash.xxh64_intdigest(str(value).encode()) % rows for value in values]


@pytest.mark.parametrize("rows", [10, 1000, 2**33 + 7])
def test_integers_through_a_growing_memo(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "_MEMO_LIMIT", 4096)
    function = HashBuckets(rows)
    rng = np.random.default_rng(0)
    for top in (3, 100, 5, 5000, 2**40, 800, 2**62):
        values = rng.integers(0, top, 700)
        values[::50] = -values[::50]
        assert function(Bags(values)).tolist() == wanted(values.tolist(), rows)
    assert function(Bags(np.empty(0, np.int64))).size == 0


@pytest.mark.parametrize("kind", [np.int8, np.uint32, np.uint64])
def test_integers_of_other_widths(kind: type) -> None:
    values = np.array([0, 1, np.iinfo(kind).max, np.iinfo(kind).min], kind)
    assert HashBuckets(97)(Bags(values)).tolist() == wanted(values.tolist(), 97)


def test_many_repeated_large_integers_and_texts() -> None:
    values = np.random.default_rng(1).integers(2**50, 2**50 + 9, 2000)
    assert HashBuckets(97)(Bags(values)).tolist() == wanted(values.tolist(), 97)
    texts = [f"w{v}" for v in values]
    assert HashBuckets(97)(Bags(pa.array(texts))).tolist() == wanted(texts, 97)
    encoded = pa.array(texts).dictionary_encode()
    assert HashBuckets(97)(Bags(encoded)).tolist() == wanted(texts, 97)
    unlike = [f"w{v}" for v in range(2000)]
    assert HashBuckets(97)(Bags(pa.array(unlike))).tolist() == wanted(unlike, 97)


def test_boundaries_belong_to_the_bucket_below() -> None:
    function = Boundaries([0.1, 1.0, 2.5])
    values = np.array([-1.0, 0.1, 0.11, 1.0, 2.0, 2.5, 9.0])
    assert function(Bags(values)).tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert function.num_embeddings == 4
    assert function(Bags(pa.array(["0.1", "3e1"]))).tolist() == [0, 3]


def test_integer_buckets_take_ids_as_they_are() -> None:
    function = IntegerBuckets(5)
    assert function(Bags(pa.array(["4", "-1", "7"]))).tolist() == [4, -1, 7]
    assert function.verbatim and not HashBuckets(5).verbatim
