# SPDX-License-Identifier: Apache-2.0
"""The Triton form of jagged_dense_bmm: interpreted against float64, compiled, and on a GPU."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from interpreted import Run, interpreter
from torch import Tensor

from tzgen.ops.jagged_dense_bmm import (
    jagged_dense_bmm_broadcast_add,
    jagged_dense_bmm_broadcast_add_reference,
)

pytest.importorskip("triton", reason="needs triton")
NAMES = ("out", "d_jagged", "d_dense", "d_bias")
SHAPES = [
    pytest.param([4], 3, 5, id="one row"),
    pytest.param([0, 3, 0, 63, 64, 65, 1], 40, 70, id="borders of tiles"),
    pytest.param([0, 0], 8, 8, id="no tokens"),
    pytest.param([130, 2], 65, 33, id="odd"),
]


def arguments(lengths: list[int], depth: int, columns: int) -> tuple[Tensor, ...]:
    """jagged, offsets, dense, bias and a gradient, float64."""
    make = torch.Generator().manual_seed(5)
    sizes = [(sum(lengths), depth), (len(lengths), depth, columns), (len(lengths), columns)]
    jagged, dense, bias = (torch.randn(s, generator=make, dtype=torch.float64) for s in sizes)
    grad = torch.randn(sum(lengths), columns, generator=make, dtype=torch.float64)
    return jagged, torch.tensor([0, *lengths]).cumsum(0), dense * depth**-0.5, bias, grad


def wanted(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    jagged, offsets, dense, bias, grad = args
    leaves = [x.detach().requires_grad_() for x in (jagged, dense, bias)]
    out = jagged_dense_bmm_broadcast_add_reference(leaves[0], offsets, *leaves[1:])
    return (out.detach(), *torch.autograd.grad(out, leaves, grad))


def run_kernels(args: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Both kernels as the op calls them."""
    from tzgen.ops.jagged_dense_bmm import triton_jagged_bmm

    jagged, dense, bias, grad = (args[i].to(dtype) for i in (0, 2, 3, 4))
    out = triton_jagged_bmm.forward(jagged, args[1], dense, bias)
    return (out, *triton_jagged_bmm.backward(grad, jagged, args[1], dense))


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with interpreter() as started:
        yield started


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 5e-3)])
@pytest.mark.parametrize(("lengths", "depth", "columns"), SHAPES)
def test_interpreter_matches_the_reference(
    run: Run, lengths: list[int], depth: int, columns: int, dtype: torch.dtype, bound: float
) -> None:
    args = arguments(lengths, depth, columns)
    for name, got, want in zip(NAMES, run(run_kernels, args, dtype), wanted(args), strict=True):
        assert got.dtype == dtype and got.shape == want.shape, name
        error = (got.double() - want).norm() / (want.norm() + 1e-30)
        assert error < bound, f"{name}: {error:.1e}"


def test_nan_of_a_neighbour_does_not_leak(run: Run) -> None:
    jagged, offsets, dense, bias, grad = arguments([70, 9, 3], 20, 20)
    jagged[:70], dense[0], bias[2], grad[79:] = (torch.nan,) * 4
    out, d_jagged, d_dense, d_bias = run(
        run_kernels, (jagged, offsets, dense, bias, grad), torch.float32
    )
    for tensor in (out[70:79], d_jagged[70:79], d_dense[1], d_bias[1]):
        assert tensor.isfinite().all()


def compiled_names(capability: int) -> list[tuple[str, int]]:
    """(name, spilled bytes) of what is compiled for a GPU that is not there."""
    import triton
    from triton_aot import AbsentDevice

    device = AbsentDevice(capability)
    triton.runtime.driver.set_active(device)
    for dtype in (torch.bfloat16, torch.float32):
        run_kernels(arguments([5, 70], 128, 128), dtype)
    return [(one.name, one.spilled) for one in device.compiled]


def test_kernels_compile_for_a_gpu() -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        found = pool.submit(compiled_names, 90).result()
    assert {name for name, _ in found} == {"_forward", "_backward"}
    assert all(spilled <= 16 for _, spilled in found), found


@pytest.mark.gpu
@pytest.mark.parametrize(("lengths", "depth", "columns"), SHAPES)
def test_gpu_matches_the_reference(lengths: list[int], depth: int, columns: int) -> None:
    args = arguments(lengths, depth, columns)
    jagged, offsets, dense, bias, grad = (x.cuda() for x in args)
    leaves = [x.float().requires_grad_() for x in (jagged, dense, bias)]
    out = jagged_dense_bmm_broadcast_add(leaves[0], offsets, *leaves[1:])
    got = (out.detach(), *torch.autograd.grad(out, leaves, grad.float()))
    for name, mine, want in zip(NAMES, got, wanted(args), strict=True):
        torch.testing.assert_close(mine.cpu().double(), want, rtol=2e-3, atol=2e-3, msg=name)
