# SPDX-License-Identifier: Apache-2.0
"""XXH64 against the xxhash package, for every length and for whole integer ranges."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from tzgen.features import hashing


def expected(texts: list[str]) -> np.ndarray:
    return np.array([xxhash.xxh64_intdigest(text.encode()) for text in texts], np.uint64)


def random_text(rng: random.Random, length: int) -> str:
    alphabets = [(32, 127), (0x4E00, 0x9FFF), (0x1F600, 0x1F640)]
    return "".join(chr(rng.randrange(*rng.choice(alphabets))) for _ in range(length))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = random.Random(7)
    return [random_text(rng, rng.randrange(201)) for _ in range(1500)] + [
        "x" * length for length in range(201)
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_unicode_of_all_lengths(texts: list[str], kind: pa.DataType) -> None:
    np.testing.assert_array_equal(hashing.hash_strings(pa.array(texts, kind)), expected(texts))


@pytest.mark.parametrize(("start", "length"), [(0, 1), (7, 900), (1700, 1), (3, 0)])
def test_slices_of_an_array(texts: list[str], start: int, length: int) -> None:
    array = pa.array(texts).slice(start, length)
    wanted = expected(texts[start : start + length])
    np.testing.assert_array_equal(hashing.hash_strings(array), wanted)


def test_only_empty_strings_have_no_data_buffer() -> None:
    np.testing.assert_array_equal(hashing.hash_strings(pa.array(["", ""])), expected(["", ""]))


def test_blocks_join(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> None:
    monkeypatch.setattr(hashing, "_BLOCK", 17)
    np.testing.assert_array_equal(hashing.hash_strings(pa.array(texts)), expected(texts))
    numbers = np.arange(-40, 40)
    wanted = expected([str(n) for n in numbers])
    np.testing.assert_array_equal(hashing.hash_integers(numbers), wanted)


def test_integers_are_their_decimal_text() -> None:
    rng = random.Random(3)
    values = [rng.randrange(-(2**63), 2**63) >> rng.randrange(64) for _ in range(4000)]
    values += [10**k + d for k in range(19) for d in (-1, 0, 1)] + [-(2**63), 2**63 - 1, 0, -1]
    numbers = np.array(values, np.int64)
    np.testing.assert_array_equal(
        hashing.hash_integers(numbers), expected([str(v) for v in values])
    )


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint32, np.uint64])
def test_integers_of_every_width(kind: type) -> None:
    info = np.iinfo(kind)
    numbers = np.array([info.min, info.max, 0, 1, 9, 10, 99], kind)
    wanted = expected([str(n) for n in numbers.tolist()])
    np.testing.assert_array_equal(hashing.hash_integers(numbers), wanted)


@pytest.mark.parametrize("divisor", [1, 2, 1024, 1_000_003, 2**62, 2**63 - 1])
def test_remainder_is_unsigned(divisor: int) -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)
    wanted = [h % divisor for h in hashes.tolist()]
    np.testing.assert_array_equal(hashing.remainder(hashes, divisor), wanted)
