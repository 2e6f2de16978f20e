# SPDX-License-Identifier: Apache-2.0
"""Index arithmetic against lists of lists."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tzgen.ops import jagged

LENGTHS = [[3], [0, 2, 0, 1], [0, 0], [5, 1, 4], []]


def int64(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_rows_places_and_offsets(lengths: list[int]) -> None:
    rows, places = jagged.place_index(int64(lengths), sum(lengths))
    want = [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    assert list(zip(rows.tolist(), places.tolist(), strict=True)) == want
    starts = [sum(lengths[:row]) for row in range(len(lengths) + 1)]
    assert jagged.offsets_of(int64(lengths)).tolist() == starts


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_flip_reverses_each_row(lengths: list[int]) -> None:
    values = torch.arange(sum(lengths))
    want = [x for part in values.split(lengths) for x in part.flip(0).tolist()] if lengths else []
    index = jagged.flip_index(int64(lengths), sum(lengths))
    assert values.index_select(0, index).tolist() == want


def test_concat_lays_rows_side_by_side_and_splits_again() -> None:
    lengths = [[2, 2, 2], [0, 3, 1], [1, 0, 2]]
    parts = [torch.randn(sum(part), 4, requires_grad=True) for part in lengths]
    places = jagged.concat_places([int64(part) for part in lengths], [sum(p) for p in lengths])
    out = jagged.concat(parts, places)
    pieces = [part.split(size) for part, size in zip(parts, lengths, strict=True)]
    want = torch.cat([piece[row] for row in range(3) for piece in pieces])
    assert torch.equal(out, want)
    for part, place in zip(parts, places, strict=True):
        assert torch.equal(out.index_select(0, place), part)
    weights = torch.randn_like(out)
    got = torch.autograd.grad(out, parts, weights, retain_graph=True)
    for name, (x, y) in enumerate(zip(got, torch.autograd.grad(want, parts, weights), strict=True)):
        torch.testing.assert_close(x, y, msg=f"part {name}")


class Concat(nn.Module):
    def forward(self, a: Tensor, la: Tensor, b: Tensor, lb: Tensor) -> Tensor:
        places = jagged.concat_places([la, lb], [a.size(0), b.size(0)])
        return jagged.concat([a, b], places)


def test_exports_with_dynamic_rows_and_tokens() -> None:
    def args(la: list[int], lb: list[int]) -> tuple[Tensor, ...]:
        return torch.randn(sum(la), 3), int64(la), torch.randn(sum(lb), 3), int64(lb)

    dynamic = {0: torch.export.Dim.DYNAMIC}
    shapes = dict.fromkeys(("a", "la", "b", "lb"), dynamic)
    exported = torch.export.export(
        Concat(), args([2, 3, 1], [1, 1, 2]), dynamic_shapes=shapes, strict=False
    )
    for other in (args([4, 0], [0, 2]), args([2, 2, 2, 9], [7, 0, 3, 1])):
        assert torch.equal(exported.module()(*other), Concat()(*other))
