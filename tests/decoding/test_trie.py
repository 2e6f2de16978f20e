# SPDX-License-Identifier: Apache-2.0
"""The trie against sets of prefixes: nodes, children, items; odd catalogues and stored arrays."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tzgen.decoding.order import keys_of
from tzgen.decoding.trie import Trie

BOTH = pytest.mark.parametrize("dense_bytes", [0, 1 << 26], ids=["csr", "dense"])


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], list[int]]:
    """Codes (repeats allowed) and sizes: single items, chains, levels of different size."""
    sizes = draw(st.lists(st.sampled_from([1, 2, 3, 5, 8, 40]), min_size=1, max_size=4))
    code = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    return draw(st.lists(code, min_size=1, max_size=30)), sizes


def check_against_sets(trie: Trie, items: Sequence[tuple[int, ...]], sizes: Sequence[int]) -> None:
    """Walk the whole trie and compare with the prefixes of the items."""
    assert trie.sizes == tuple(sizes) and trie.num_items == len(items)
    nodes: dict[tuple[int, ...], int] = {(): 0}
    for depth, level in enumerate(trie.levels):
        prefixes = sorted({item[: depth + 1] for item in items})
        assert level.num_nodes == len(prefixes)
        reached = {}
        for prefix in prefixes:
            parent = torch.tensor(nodes[prefix[:-1]])
            node = int(level.child(parent, torch.tensor(prefix[-1])))
            assert int(level.indptr[parent]) <= node < int(level.indptr[parent + 1])
            assert int(level.tokens[node]) == prefix[-1]
            assert int(level.parents()[node]) == int(parent)
            reached[prefix] = node
        assert list(reached.values()) == list(range(len(prefixes)))  # lexicographic numbering
        counts = {}
        for prefix in prefixes:
            counts[prefix[:-1]] = counts.get(prefix[:-1], 0) + 1
        assert level.branching == max(counts.values())
        nodes = reached
    for leaf, codes in enumerate(sorted(set(items))):
        places = range(int(trie.leaf_ptr[leaf]), int(trie.leaf_ptr[leaf + 1]))
        held = [int(trie.items[place]) for place in places]
        assert held == [row for row, item in enumerate(items) if item == codes]


@given(case=catalogues(), dense_bytes=st.sampled_from([0, 1 << 20]))
@settings(max_examples=60, deadline=None)
def test_nodes_and_items_are_the_prefixes_of_the_items(
    case: tuple[list[tuple[int, ...]], list[int]], dense_bytes: int
) -> None:
    items, sizes = case
    codes = torch.tensor(items)
    trie = Trie.from_codes(codes, sizes, shared_leaves=True, dense_bytes=dense_bytes)
    check_against_sets(trie, items, sizes)
    again = Trie.from_arrays(trie.to_arrays(), dense_bytes=dense_bytes)
    check_against_sets(again, items, sizes)
    leaves = trie.find(codes)
    assert trie.codes_of(leaves).tolist() == codes.tolist()
    assert trie.places[trie.items].tolist() == list(range(len(items)))


@BOTH
def test_find_says_which_codes_no_item_has(dense_bytes: int) -> None:
    sizes = (6, 5, 7)
    every = torch.cartesian_prod(*(torch.arange(size) for size in sizes))
    kept = torch.rand(len(every)) < 0.3
    trie = Trie.from_codes(every[kept], sizes, dense_bytes=dense_bytes)
    assert (trie.find(every) >= 0).tolist() == kept.tolist()
    assert trie.find(every.view(6, 5, 7, 3)).shape == (6, 5, 7)
    missing = trie.codes_of(torch.tensor([-1, 0]))
    assert missing[0].tolist() == [-1, -1, -1] and missing[1].tolist() == every[kept][0].tolist()


def test_codes_whose_product_passes_int64() -> None:
    sizes = [70_000, 1 << 33, 70_000, 5]  # 2^70: more than one sort key
    codes = torch.stack([torch.randint(0, size, (2000,)) for size in sizes], 1)
    codes[1000:, 0] = codes[:1000, 0]
    codes[0] = torch.tensor([size - 1 for size in sizes])
    assert len(keys_of(sizes)) == 2
    trie = Trie.from_codes(codes, sizes)
    rows = [tuple(row) for row in codes.tolist()]
    order = [int(item) for item in trie.items]
    assert [rows[item] for item in order] == sorted(rows)
    assert trie.levels[1].tokens.dtype == torch.int64 and trie.levels[0].bias is None
    assert trie.items[trie.find(codes)].tolist() == list(range(2000))
    assert trie.codes_of(trie.find(codes)[:3]).tolist() == codes[:3].tolist()


def test_dense_where_many_codes_follow_and_memory_allows() -> None:
    codes = torch.cartesian_prod(torch.arange(8), torch.arange(8), torch.arange(1))
    assert [level.bias is not None for level in Trie.from_codes(codes, (8, 8, 64)).levels] == [
        True,
        True,
        False,  # one child of 64
    ]
    small = Trie.from_codes(codes, (8, 8, 64), dense_bytes=5 * 2 * 8)
    assert [level.bias is not None for level in small.levels] == [True, False, False]
    bias = Trie.from_codes(codes[::2], (8, 8, 64)).levels[1].bias
    assert bias is not None and bias.shape == (9, 8)
    assert (bias[:8] == 0).float().mean() == 0.5 and bool((bias[8] == -torch.inf).all())


def test_bytes_are_those_of_the_tables() -> None:
    trie = Trie.from_codes(torch.tensor([[0, 1], [1, 1]]), (2, 2), dense_bytes=0)
    tokens, indptr = 4 * (2 + 2) + 4 * (2 + 1), 8 * 3 + 8 * 4
    tails = 4 * (2 * 2) + 4 * (2 * 1)
    assert trie.num_bytes() == tokens + indptr + tails + 8 * 4 + 8 * 2 + 8 * 2


@pytest.mark.parametrize(
    ("codes", "sizes", "message"),
    [
        (torch.zeros(0, 2, dtype=torch.int64), (2, 2), "the catalogue is empty"),
        (torch.zeros(3, 2), (2, 2), "torch.float32.*integers"),
        (torch.zeros(3, dtype=torch.int64), (2,), r"shape \(3,\)"),
        (torch.zeros(3, 2, dtype=torch.int64), (2, 2, 2), "2 levels but sizes names 3"),
        (torch.tensor([[0, 0], [1, 2]]), (2, 2), "item 1 has code 2 at level 1.*0 to 1"),
        (torch.tensor([[0, 0], [-1, 1]]), (2, 2), "item 1 has code -1 at level 0"),
        (
            torch.tensor([[0, 0], [1, 1], [0, 0], [0, 0]]),
            (2, 2),
            r"4 items have only 2 different codes.*rows \[0, 2, 3\].*\[0, 0\].*shared_leaves",
        ),
    ],
)
def test_wrong_codes_are_refused(codes: Tensor, sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trie.from_codes(codes, sizes)


def test_narrow_integers_are_accepted() -> None:
    trie = Trie.from_codes(torch.tensor([[1, 0], [0, 1]], dtype=torch.int16), (2, 2))
    assert trie.items.tolist() == [1, 0]


def test_damaged_arrays_are_refused() -> None:
    good = Trie.from_codes(torch.tensor([[0, 1], [1, 0], [1, 1]]), (2, 2)).to_arrays()
    assert all(array.dim() == 1 and array.is_contiguous() for array in good.values())
    breaks: list[tuple[str, object, str]] = [
        ("items", None, "'items' is missing"),
        ("items", torch.tensor([0, 0, 1]), "not a permutation"),
        ("items", torch.tensor([0, 1, 3]), "not a permutation"),
        ("tokens_1", torch.tensor([0, 1]), "indptr_1"),
        ("tokens_1", torch.tensor([0, 1, 2]), r"outside \[0, 2\)"),
        ("indptr_1", torch.tensor([0, 3]), "different tries"),
        ("indptr_1", torch.tensor([0, 0, 3]), "different tries"),
        ("leaf_ptr", torch.tensor([0.0, 1, 2, 3]), "float32"),
        ("sizes", torch.tensor([], dtype=torch.int64), "at least one level"),
    ]
    for name, value, message in breaks:
        arrays = {key: array for key, array in good.items() if key != name or value is not None}
        if isinstance(value, Tensor):
            arrays[name] = value
        with pytest.raises(ValueError, match=message):
            Trie.from_arrays(arrays)


@pytest.mark.gpu
def test_to_a_device_and_back() -> None:
    trie = Trie.from_codes(torch.tensor([[0, 1], [1, 0], [1, 1]]), (2, 2))
    moved = trie.to("cuda")
    assert moved.device.type == "cuda"
    assert moved.find(torch.tensor([[1, 0]], device="cuda")).tolist() == [1]


def test_to_keeps_everything() -> None:
    trie = Trie.from_codes(torch.tensor([[0, 1], [1, 0], [1, 1]]), (2, 2))
    moved = trie.to("cpu")
    check_against_sets(moved, [(0, 1), (1, 0), (1, 1)], (2, 2))
    assert moved.num_bytes() == trie.num_bytes()
