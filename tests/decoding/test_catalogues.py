# SPDX-License-Identifier: Apache-2.0
"""Masks over nodes against sets of allowed prefixes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tzgen.decoding.catalogues import SubCatalogues, item_mask
from tzgen.decoding.trie import Trie

SIZES = (3, 5, 4)


@given(
    items=st.lists(st.tuples(*(st.integers(0, size - 1) for size in SIZES)), min_size=1),
    seed=st.integers(0, 100),
    share=st.sampled_from([0.0, 0.2, 0.8, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_a_node_is_alive_when_an_allowed_item_lies_under_it(
    items: list[tuple[int, ...]], seed: int, share: float
) -> None:
    trie = Trie.from_codes(torch.tensor(items), SIZES, shared_leaves=True)
    generator = torch.Generator().manual_seed(seed)
    masks = {name: torch.rand(len(items), generator=generator) < share for name in ("a", "b")}
    catalogues = SubCatalogues.of(trie, masks)
    for row, mask in enumerate(masks.values()):
        for depth, level in enumerate(trie.levels):
            prefixes = sorted({item[: depth + 1] for item in items})
            allowed = {
                item[: depth + 1] for item, kept in zip(items, mask.tolist(), strict=True) if kept
            }
            alive = catalogues.alive[depth][row, : level.num_nodes]
            assert (alive == 0).tolist() == [prefix in allowed for prefix in prefixes]
            dense = catalogues.bias[depth]
            if dense is not None:
                rows = dense.view(2, level.num_parents + 1, level.size)[row]
                parents = sorted({item[:depth] for item in items})
                for parent, codes in zip(parents, rows.tolist(), strict=False):
                    legal = [code for code, value in enumerate(codes) if value == 0]
                    assert legal == [c for c in range(level.size) if (*parent, c) in allowed]
                assert (rows[-1] == -torch.inf).all()
        assert catalogues.allowed[row, trie.places].tolist() == mask.tolist()


def test_dense_tables_share_their_budget() -> None:
    codes = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    trie = Trie.from_codes(codes, (4, 4))
    everything = {name: torch.ones(16, dtype=torch.bool) for name in "abc"}
    small = SubCatalogues.of(trie, everything, dense_bytes=3 * 4 * 2 * 4)
    assert [bias is None for bias in small.bias] == [False, True]


def test_lists_become_masks() -> None:
    trie = Trie.from_codes(torch.arange(5).view(5, 1), (5,))
    assert item_mask(trie).all()
    assert item_mask(trie, allow=torch.tensor([1, 1, 4])).tolist() == [0, 1, 0, 0, 1]
    assert item_mask(trie, deny=torch.tensor([0])).tolist() == [0, 1, 1, 1, 1]
    both = item_mask(trie, allow=torch.tensor([1, 2]), deny=torch.tensor([2, 3]))
    assert both.tolist() == [0, 1, 0, 0, 0]
    assert not item_mask(trie, allow=torch.tensor([], dtype=torch.int64)).any()
    with pytest.raises(ValueError, match=r"the deny list has items from 2 to 5.*0 to 4"):
        item_mask(trie, deny=torch.tensor([5, 2]))


def test_what_does_not_fit_is_refused() -> None:
    trie = Trie.from_codes(torch.arange(5).view(5, 1), (5,))
    with pytest.raises(ValueError, match="name at least one"):
        SubCatalogues.of(trie, {})
    for wrong in (torch.ones(4, dtype=torch.bool), torch.ones(5)):
        with pytest.raises(ValueError, match=r"'new' is .*5 items"):
            SubCatalogues.of(trie, {"new": wrong})
    catalogues = SubCatalogues.of(trie, {"new": torch.ones(5, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"\['old'\]; there are \['new'\]"):
        catalogues.index(["new", "old"])
