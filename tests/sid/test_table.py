# SPDX-License-Identifier: Apache-2.0
"""The table does not depend on the order of rows; broken catalogues are named."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from tzgen.errors import UserError
from tzgen.sid.collisions import resolve
from tzgen.sid.space import SidSpace
from tzgen.sid.table import SidTable, make_table, merged_table, resolved_table

SPACE = SidSpace((4, 4))


def table(ids: pa.Array, codes: list[list[int]], policy: str = "suffix") -> SidTable:
    made = make_table(ids, np.array(codes), SPACE)
    return resolved_table(made, resolve(made.codes, made.space, policy))


@pytest.mark.parametrize("kind", [pa.int64(), pa.string(), pa.large_string(), pa.int32()])
def test_shuffled_input_gives_the_same_ids_and_hash(kind: pa.DataType) -> None:
    rng = np.random.default_rng(0)
    ids = np.arange(50)
    codes = rng.integers(0, 4, (50, 2))
    tables = []
    for _ in range(3):
        order = rng.permutation(50)
        array = pa.array(ids[order]).cast(pa.int64()).cast(kind)
        tables.append(table(array, codes[order].tolist()))
    for other in tables[1:]:
        assert np.array_equal(other.codes, tables[0].codes)
        assert other.sid_hash == tables[0].sid_hash
    rows = tables[0].rows_of(pa.array(ids).cast(kind))
    assert np.array_equal(tables[0].origin[rows], codes)  # the ID of item i is item i's


def test_the_hash_knows_every_code_item_and_codebook() -> None:
    ids = pa.array(["a", "b", "cd"])
    codes = [[0, 1], [2, 3], [3, 3]]
    hashes = {table(ids, codes).sid_hash}
    hashes.add(table(ids, [[0, 1], [2, 3], [3, 2]]).sid_hash)
    hashes.add(table(pa.array(["a", "bc", "d"]), codes).sid_hash)
    other = make_table(ids, np.array(codes), SidSpace((4, 5)))
    hashes.add(resolved_table(other, resolve(other.codes, other.space, "suffix")).sid_hash)
    assert len(hashes) == 4
    sliced = pa.array(["x", "a", "b", "cd"])[1:]
    assert table(sliced, codes).sid_hash in hashes


def test_the_trie_finds_the_row_of_every_item() -> None:
    ids = pa.array([5, 3, 9])
    made = table(ids, [[0, 1], [0, 1], [2, 2]])
    leaves = made.trie.find(torch.from_numpy(made.codes))
    assert sorted(leaves.tolist()) == [0, 1, 2]
    assert made.rows_of(pa.array([9, 4, 3, None])).tolist() == [2, -1, 0, -1]


def test_ids_of_the_other_kind_are_refused() -> None:
    codes = [[0, 1], [2, 2]]
    for mine, theirs in (
        (pa.array([5, 3]), pa.array(["5"])),
        (pa.array(["5", "3"]), pa.array([5])),
    ):
        made = table(mine, codes)
        with pytest.raises(UserError, match="store both as text or both as integers"):
            made.rows_of(theirs)
        assert made.rows_of(pa.array([None])).tolist() == [-1]
        assert made.rows_of(mine.dictionary_encode()).tolist() == [1, 0]


def test_merging_keeps_everybodys_id() -> None:
    first = table(pa.array([1, 5]), [[0, 0], [1, 1]], "none")
    second = table(pa.array([3]), [[0, 0]], "none")
    both = merged_table(first, second)
    assert both.item_id.to_pylist() == [1, 3, 5]
    assert both.codes.tolist() == [[0, 0], [0, 0], [1, 1]]


def test_broken_catalogues_are_named() -> None:
    with pytest.raises(UserError, match="item 7 has more than one row"):
        make_table(pa.array([7, 2, 7]), np.zeros((3, 2), np.int64), SPACE)
    with pytest.raises(UserError, match="row 1 has no item id"):
        make_table(pa.array([7, None]), np.zeros((2, 2), np.int64), SPACE)
    with pytest.raises(UserError, match="empty"):
        make_table(pa.array([], pa.int64()), np.zeros((0, 2), np.int64), SPACE)
    with pytest.raises(UserError, match="item ids of type double"):
        make_table(pa.array([1.5]), np.zeros((1, 2), np.int64), SPACE)
    with pytest.raises(UserError, match="item 2: code 4 at level 1"):
        make_table(pa.array([7, 2]), np.array([[0, 0], [0, 4]]), SPACE)
