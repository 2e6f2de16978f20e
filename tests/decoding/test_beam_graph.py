# SPDX-License-Identifier: Apache-2.0
"""A search is one graph: nothing is read back from the device, and it exports with any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tzgen.decoding.beam import beam_search
from tzgen.decoding.catalogues import SubCatalogues
from tzgen.decoding.options import BeamOptions, BeamState
from tzgen.decoding.post import list_items
from tzgen.decoding.trie import Trie

from .plain_beam import RandomModel

SIZES = (6, 9, 4)
GROUPS = {"groups": 2, "group_penalty": 0.8}


def some_codes(sizes: tuple[int, ...], count: int) -> Tensor:
    every = torch.cartesian_prod(*(torch.arange(size) for size in sizes))
    return every[torch.randperm(len(every))[:count]]


class NoReadBack(TorchDispatchMode):
    """Fails where a value would be read from the device, or a shape would depend on one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        forbidden = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_to_copy.cpu")
        assert not any(word in str(func) for word in forbidden), str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "extra", [{}, {"renormalize": True}, {"top_p": 0.7}, GROUPS, {"sample": True}]
)
def test_nothing_is_read_back_from_the_device(extra: dict[str, Any]) -> None:
    codes = some_codes(SIZES, 90)
    trie, model = Trie.from_codes(codes, SIZES), RandomModel(SIZES)
    catalogues = SubCatalogues.of(trie, {"odd": torch.arange(90) % 2 == 1})
    seen = torch.randint(-1, 90, (3, 5))
    with NoReadBack():
        result = beam_search(
            model.step, trie, 3, BeamOptions(beams=8, **extra), seen=seen, catalogues=catalogues
        )
        list_items(trie, result, 5, seen=seen)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoReadBack():
        int(result.leaves[0, 0])


class Exported(nn.Module):
    """A search with its model, seen items and sub-catalogues, as one graph."""

    def __init__(self, trie: Trie, catalogues: SubCatalogues, options: BeamOptions) -> None:
        super().__init__()
        self.trie, self.catalogues, self.options = trie, catalogues, options
        self.inner = nn.ModuleList([nn.Embedding(size, 8) for size in trie.sizes])
        self.heads = nn.ModuleList([nn.Linear(8, size) for size in trie.sizes])

    def forward(self, user: Tensor, seen: Tensor, choice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def step(level: int, state: BeamState) -> Tensor:
            x = user.unsqueeze(1)
            for depth in range(level):
                x = x + self.inner[depth](state.codes[:, :, depth])
            return self.heads[level](x.tanh()).flatten(0, 1)

        filters = {"seen": seen, "catalogues": self.catalogues, "choice": choice}
        result = beam_search(step, self.trie, user.size(0), self.options, **filters)
        return result.codes, result.scores, list_items(self.trie, result, 5, **filters).items


@pytest.mark.parametrize(
    ("sizes", "extra"),
    [
        pytest.param((9, 40), {}, id="two-levels"),
        pytest.param(SIZES, GROUPS, id="groups", marks=pytest.mark.slow),
    ],
)
def test_exports_as_one_graph_with_any_batch(sizes: tuple[int, ...], extra: dict[str, Any]) -> None:
    codes = some_codes(sizes, 90)
    trie = Trie.from_codes(codes, sizes, dense_bytes=200)  # the second level is CSR
    masks = {"odd": torch.arange(90) % 2 == 1, "all": torch.ones(90, dtype=torch.bool)}
    model = Exported(trie, SubCatalogues.of(trie, masks), BeamOptions(beams=6, **extra))

    def inputs(rows: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        choice = torch.arange(rows) % 2
        return torch.randn(rows, 8), torch.randint(-1, 90, (rows, length)), choice

    rows, length = torch.export.Dim("rows", min=2), torch.export.Dim("length", min=2)
    shapes = ({0: rows}, {0: rows, 1: length}, {0: rows})
    graph = torch.export.export(model, inputs(3, 7), dynamic_shapes=shapes).module()
    for example in (inputs(3, 7), inputs(8, 2)):
        for got, want in zip(graph(*example), model(*example), strict=True):
            torch.testing.assert_close(got, want)
