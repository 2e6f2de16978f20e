# SPDX-License-Identifier: Apache-2.0
"""embedding_lookup against the loop over bags in `reference`: values, gradients, export."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tzgen.ops.embedding_lookup import MODES, embedding_lookup, pool
from tzgen.ops.embedding_lookup import reference as ref

LENGTHS = [
    pytest.param([2, 0, 3, 1], id="mixed"),
    pytest.param([0, 0], id="all-empty"),
    pytest.param([], id="no-bags"),
    pytest.param([1], id="one"),
    pytest.param([0, 7, 0], id="long"),
]


def case(lengths: list[int], weighted: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    total = sum(lengths)
    weight = torch.randn(5, 3, requires_grad=True)
    weights = torch.rand(total) if weighted else None
    return weight, torch.randint(0, 5, (total,)), torch.tensor(lengths, dtype=torch.int64), weights


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sparse_grad", [False, True])
def test_matches_reference(
    lengths: list[int], mode: str, weighted: bool, sparse_grad: bool
) -> None:
    weight, values, lens, weights = case(lengths, weighted)
    bags = None if mode == "none" else lens
    want = ref.embedding_lookup(weight, values, bags, weights, MODES.index(mode))
    upstream = torch.randn_like(want)
    (want_grad,) = torch.autograd.grad(want, weight, upstream, allow_unused=True)
    got = embedding_lookup(weight, values, bags, weights, mode=mode, sparse_grad=sparse_grad)
    (got_grad,) = torch.autograd.grad(got, weight, upstream)
    torch.testing.assert_close(got, want)
    assert got_grad.is_sparse == sparse_grad
    got_grad = got_grad.to_dense() if sparse_grad else got_grad
    want_grad = torch.zeros_like(weight) if want_grad is None else want_grad
    torch.testing.assert_close(got_grad, want_grad)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
def test_pool_is_the_lookup_in_two_steps(lengths: list[int], mode: str, weighted: bool) -> None:
    weight, values, lens, weights = case(lengths, weighted)
    want = embedding_lookup(weight, values, lens, weights, mode=mode)
    got = pool(embedding_lookup(weight, values), lens, weights, mode=mode)
    upstream = torch.randn_like(want)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        torch.autograd.grad(got, weight, upstream), torch.autograd.grad(want, weight, upstream)
    )


def test_half_tables_are_summed_in_float32() -> None:
    weight = torch.full((2, 2), 1e-3, dtype=torch.float16)
    values = torch.zeros(4096, dtype=torch.int64)
    out = embedding_lookup(weight, values, torch.tensor([4096]), mode="sum")
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, weight[:1].float() * 4096)


def test_opcheck() -> None:
    weight, values, lens, weights = case([2, 0, 3], True)
    for mode in range(3):
        bags = None if mode == 0 else lens
        args = (weight, values, bags, weights, mode, False)
        torch.library.opcheck(torch.ops.tzgen.embedding_lookup.default, args)


class Lookup(nn.Module):
    def forward(self, weight: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        return embedding_lookup(weight, values, lengths, mode="mean") * 2


def test_exports_with_dynamic_ids_and_bags() -> None:
    weight, values, lens, _ = case([2, 0, 3], False)
    dims = (None, {0: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.DYNAMIC})
    program = torch.export.export(Lookup(), (weight.detach(), values, lens), dynamic_shapes=dims)
    for lengths in ([4, 1], [0, 0, 0, 0], [3, 0, 9]):
        _, values, lens, _ = case(lengths, False)
        want = Lookup()(weight, values, lens)
        torch.testing.assert_close(program.module()(weight.detach(), values, lens), want.detach())


def test_refuses_what_it_cannot_do() -> None:
    weight, values, lens, _ = case([2, 1], False)
    with pytest.raises(ValueError, match="modes"):
        embedding_lookup(weight, values, lens, mode="max")
    with pytest.raises(ValueError, match="int64 values"):
        embedding_lookup(weight, values.int())
    with pytest.raises(ValueError, match="lengths exactly"):
        embedding_lookup(weight, values, mode="sum")
    with pytest.raises(ValueError, match="no gradient"):
        embedding_lookup(weight, values, lens, torch.ones(3, requires_grad=True), mode="sum")
