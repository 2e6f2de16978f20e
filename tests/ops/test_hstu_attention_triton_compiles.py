# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels become machine code for Ampere and Hopper, on a machine that has neither.

What the interpreter forgives, the compiler may not. The shipped configs fit the shared memory, and
those of two-byte floats without bias tables keep what they work on in registers.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import triton
from attention_cases import SPECS
from triton_aot import SHARED_MEMORY, AbsentDevice, Compiled

from tzgen.ops.hstu_attention import (
    MaskSpec,
    triton_backward,
    triton_backward_keys,
    triton_bias_gradient,
    triton_forward,
)
from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention.triton_configs import Shape, Tuning, shipped_config
from tzgen.ops.hstu_attention_cached import CachedKV
from tzgen.ops.hstu_attention_cached import triton_forward as triton_cached

SPILL = 48  # bytes a thread: a few values of the part around the loops


KERNELS = (
    triton_forward._attend,
    triton_backward.differentiate_queries,
    triton_backward_keys.differentiate_keys,
    triton_bias_gradient._sum_by_column,
    triton_cached._attend_cached,
)


@pytest.fixture(params=[pytest.param(80, marks=pytest.mark.slow), 90])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AbsentDevice:
    absent = AbsentDevice(request.param)
    monkeypatch.setattr(triton.runtime.driver, "_active", absent)
    for kernel in KERNELS:  # what another test compiled is loaded, and counted, again
        kernel.device_caches.pop(absent.get_current_device(), None)
    return absent


def compiled(
    device: AbsentDevice,
    spec: MaskSpec,
    *,
    widths: tuple[int, int] = (128, 128),
    dtype: torch.dtype = torch.bfloat16,
    biased: bool = False,
    max_len: int = 8192,
    cached: bool = False,
) -> list[Compiled]:
    """All kernels of a forward and backward, or of a forward with paged and contiguous caches."""
    tokens, heads = 1000, 4
    rows = torch.zeros(tokens, heads * (2 * widths[0] + widths[1]), dtype=dtype)
    q, k, v = rows.split([heads * width for width in (widths[0], *widths)], dim=1)
    q, k, v = (x.unflatten(1, (heads, -1)) for x in (q, k, v))
    call = Call(
        mask=spec,
        max_len=max_len,
        alpha=0.1,
        divisor=1000.0,
        time_bias_divisor=0.301,
        num_targets=torch.tensor([20, 30]),
        timestamps=torch.zeros(tokens, dtype=torch.int64),
        position_bias=torch.zeros(heads, 401) if biased else None,
        time_bias=torch.zeros(1, 70) if biased else None,
    )
    shape = replace(Shape.of(q, v, max_len, biased), capability=device.capability)
    configs = {name: shipped_config(name, shape) for name in ("forward", "keys", "queries")}
    tuning = Tuning(configs, fast_silu=shape.half)
    offsets = torch.tensor([0, 600, tokens])
    if cached:
        lengths = torch.tensor([30, 50])
        pages = torch.zeros(9, 16, heads, widths[0], dtype=dtype)
        times = torch.zeros(9, 16, dtype=torch.int64)
        table = torch.zeros(2, 4, dtype=torch.int64)
        paged = CachedKV(pages, pages, lengths, 50, table, times)
        ragged = CachedKV(pages.flatten(0, 1), pages.flatten(0, 1), lengths, 50, None, times)
        for cache in (paged, ragged):
            triton_cached.forward(q, k, v, offsets, cache, call, tuning=tuning)
    else:
        triton_forward.forward(q, k, v, offsets, call, tuning=tuning)
        triton_backward.backward(v, q, k, v, offsets, call, tuning=tuning)
    return device.compiled


def test_a_training_step(device: AbsentDevice) -> None:
    found = compiled(device, MaskSpec(), widths=(64, 64))
    assert {kernel.name for kernel in found} == {
        "_attend",
        "differentiate_keys",
        "differentiate_queries",
    }
    for kernel in found:
        assert kernel.spilled <= SPILL and kernel.shared <= SHARED_MEMORY[device.capability], kernel


def test_numbers_that_are_one(device: AbsentDevice) -> None:
    """Triton makes a constant of an argument that is 1: one row, head, tile, and no targets."""
    x = torch.zeros(9, 1, 16, dtype=torch.float16)
    call = Call(MaskSpec(), 9, 1.0, 1.0, 0.301, None, None, torch.zeros(1, 1), None)
    offsets = torch.tensor([0, 9])
    triton_forward.forward(x, x, x, offsets, call, tuning=Tuning(fast_silu=True))
    triton_backward.backward(x, x, x, x, offsets, call, tuning=Tuning(fast_silu=True))
    cache = CachedKV(x[:, None], x[:, None], offsets[1:], 9, offsets[None])
    triton_cached.forward(x, x, x, offsets, cache, call, tuning=Tuning(fast_silu=True))
    assert len(device.compiled) == len(KERNELS)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("biased", [False, True], ids=["", "rab"])
def test_every_mask(spec: MaskSpec, biased: bool, device: AbsentDevice) -> None:
    assert len(compiled(device, spec, widths=(32, 32), biased=biased)) == 3 + biased


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(64, 64), (128, 128), (256, 256), (50, 96)], ids=str)
@pytest.mark.parametrize("max_len", [256, 8192])
def test_shipped_configs_do_not_spill(
    widths: tuple[int, int], max_len: int, device: AbsentDevice
) -> None:
    limit = SPILL if widths[0] % 64 == 0 else 4 * SPILL  # odd widths compare every column
    for kernel in compiled(device, MaskSpec(), widths=widths, max_len=max_len):
        assert kernel.spilled <= limit, kernel


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("biased", [False, True], ids=["", "rab"])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_every_dtype(dtype: torch.dtype, biased: bool, width: int, device: AbsentDevice) -> None:
    found = compiled(device, MaskSpec(), widths=(width, width), dtype=dtype, biased=biased)
    assert len(found) == 3 + biased


@pytest.mark.slow
@pytest.mark.parametrize("biased", [False, True], ids=["", "rab"])
@pytest.mark.parametrize("spec", [MaskSpec(3, 100), MaskSpec(2, timestamp_mask=True)], ids=str)
def test_cached(spec: MaskSpec, biased: bool, device: AbsentDevice) -> None:
    assert len(compiled(device, spec, biased=biased, cached=True)) == 2
