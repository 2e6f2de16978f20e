# SPDX-License-Identifier: Apache-2.0
"""The looped op against one weight a token: forward, gradients, empty rows, contract."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tzgen.ops.jagged_dense_bmm import (
    jagged_dense_bmm_broadcast_add,
    jagged_dense_bmm_broadcast_add_reference,
)


def arguments(lengths: list[int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    make = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=make, dtype=dtype).requires_grad_()

    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return normal(sum(lengths), 3), offsets, normal(len(lengths), 3, 5), normal(len(lengths), 5)


@pytest.mark.parametrize("lengths", [[4], [0, 3, 0, 1], [0, 0], [7, 1, 12]], ids=str)
def test_matches_the_reference(lengths: list[int]) -> None:
    args = arguments(lengths)
    got = jagged_dense_bmm_broadcast_add(*args)
    want = jagged_dense_bmm_broadcast_add_reference(*args)
    torch.testing.assert_close(got, want)
    leaves = (args[0], args[2], args[3])
    weights = torch.randn(got.shape)
    pairs = zip(
        ("jagged", "dense", "bias"),
        torch.autograd.grad(got, leaves, weights),
        torch.autograd.grad(want, leaves, weights),
        strict=True,
    )
    for name, ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, msg=lambda m, n=name: f"{n}: {m}")


def test_gradients_are_derivatives() -> None:
    x, offsets, dense, bias = arguments([2, 0, 3], torch.float64)
    torch.autograd.gradcheck(
        lambda a, b, c: jagged_dense_bmm_broadcast_add(a, offsets, b, c), (x, dense, bias)
    )


def test_is_a_well_formed_library_op() -> None:
    torch.library.opcheck(torch.ops.tzgen.jagged_dense_bmm.default, arguments([2, 0, 3]))


def test_neighbours_do_not_leak() -> None:
    x, offsets, dense, bias = (t.detach() for t in arguments([2, 3, 2]))
    clean = jagged_dense_bmm_broadcast_add(x, offsets, dense, bias)[2:5]
    x[:2], dense[0], bias[2] = torch.nan, torch.nan, torch.nan
    assert torch.equal(jagged_dense_bmm_broadcast_add(x, offsets, dense, bias)[2:5], clean)


def test_refuses_shapes_that_do_not_fit() -> None:
    x, offsets, dense, bias = arguments([2, 3])
    with pytest.raises(ValueError, match=r"\[L, K\] and \[B, K, M\]"):
        jagged_dense_bmm_broadcast_add(x[:, :2], offsets, dense, bias)
