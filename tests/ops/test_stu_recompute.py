# SPDX-License-Identifier: Apache-2.0
"""Giving tensors up between forward and backward: fewer bytes, the same gradients bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from tzgen.ops.stu_linear import recomputed


def project(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x @ weight, (x @ weight.t()).unflatten(1, (2, -1))


def run(
    x: Tensor, weight: Tensor, *, gives_up: bool, between: Callable[[], object] = lambda: None
) -> tuple[list[Tensor], int]:
    """Gradients, and how often the projection ran."""
    calls = [0]

    def again() -> tuple[Tensor, Tensor]:
        calls[0] += 1
        return project(x, weight)

    a, b = again()
    block = recomputed(again, (a, b), (x, weight)) if gives_up else nullcontext()
    with block:
        out = (a.sigmoid() * a).sum() + (b[:, 1] * b[:, 0]).sum() + a.exp().sum()
    del a, b
    between()
    return list(torch.autograd.grad(out, (x, weight))), calls[0]


def test_gradients_are_equal_and_one_recomputation_serves_all() -> None:
    x, weight = (torch.randn(6, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True))
    kept, calls = run(x, weight, gives_up=False)
    assert calls == 1
    again, calls = run(x, weight, gives_up=True)
    assert calls == 2
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


def test_other_tensors_are_kept_as_always() -> None:
    x = torch.randn(3, requires_grad=True)
    with recomputed(lambda: pytest.fail("nothing was given up"), (torch.randn(3),), ()):
        out = x.square().sum()
    assert torch.equal(torch.autograd.grad(out, x)[0], 2 * x.detach())


def test_a_change_in_place_of_an_input_is_refused() -> None:
    x, weight = (torch.randn(6, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True))

    def change() -> None:
        with torch.no_grad():
            weight.mul_(2)

    with pytest.raises(RuntimeError, match="in place"):
        run(x, weight, gives_up=True, between=change)
