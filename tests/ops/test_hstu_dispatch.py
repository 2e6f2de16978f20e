# SPDX-License-Identifier: Apache-2.0
"""What a kernel's name comes to on a device, and what is said where it cannot run."""

from __future__ import annotations

import sys

import pytest
import torch
from attention_cases import Case, compare, op

from tzgen.ops.hstu_attention import MaskSpec, chosen_kernel, dispatch, hstu_attention_reference

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.native_ops, "available", lambda: False)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.native_ops, "available", lambda: True)


@pytest.mark.parametrize("kernel", ["AUTO", "PYTORCH", "CPU_NATIVE"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_cpu_takes_the_native_ops(kernel: str, dtype: torch.dtype, library: None) -> None:
    assert chosen_kernel(kernel, CPU, dtype) == "CPU_NATIVE"


@pytest.mark.parametrize("kernel", ["AUTO", "PYTORCH", "CPU_TORCH"])
def test_a_cpu_without_a_library_takes_pure_torch(kernel: str, no_library: None) -> None:
    assert chosen_kernel(kernel, CPU, torch.float32) == "CPU_TORCH"


def test_auto_without_a_library_computes(no_library: None) -> None:
    case = Case(MaskSpec(2))
    compare(case.run(op("AUTO")), case.run(hstu_attention_reference), 1e-5)


def test_a_gpu_takes_triton_unless_told_otherwise_or_in_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert chosen_kernel("AUTO", CUDA, torch.bfloat16) == "TRITON"
    assert chosen_kernel("TRITON", CUDA, torch.float32) == "TRITON"
    assert chosen_kernel("PYTORCH", CUDA, torch.float32) == "CPU_TORCH"
    assert chosen_kernel("AUTO", CUDA, torch.float64) == "CPU_TORCH"
    monkeypatch.setattr(dispatch, "triton_installed", lambda: False)
    assert chosen_kernel("AUTO", CUDA, torch.bfloat16) == "CPU_TORCH"


@pytest.mark.parametrize(
    ("kernel", "device", "dtype", "message"),
    [
        ("CUTLASS", CPU, torch.float32, "no kernel 'CUTLASS'; it has AUTO"),
        ("TRITON", CPU, torch.float32, "needs a CUDA device"),
        ("TRITON", CUDA, torch.float64, "not torch.float64"),
        ("CPU_NATIVE", CPU, torch.float32, "tzgen.ops.native.build"),
        ("CPU_NATIVE", CUDA, torch.float32, "cannot run on cuda"),
    ],
)
def test_refuses_what_cannot_be(
    kernel: str,
    device: torch.device,
    dtype: torch.dtype,
    message: str,
    no_library: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=message):
        chosen_kernel(kernel, device, dtype)


def test_missing_triton_is_said_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name in [name for name in sys.modules if name.split(".")[-1].startswith("triton_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(RuntimeError, match="need the package triton"):
        dispatch.forward_of("TRITON", torch.zeros(1))
