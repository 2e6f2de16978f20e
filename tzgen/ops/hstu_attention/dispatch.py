# SPDX-License-Identifier: Apache-2.0
"""Which implementation computes an attention: a table from name to module, and what AUTO means.

    AUTO         on CUDA the Triton kernels; on a CPU, for float64, and where the package triton is
                 missing, what PYTORCH means
    PYTORCH      on a CPU the native C++ op where its library is built, else pure PyTorch
    TRITON       the Triton kernels, or a refusal
    CPU_NATIVE, CPU_TORCH    one tier of PYTORCH, for tests and measurements

Every module has `forward(q, k, v, offsets, call)` and `backward(grad, q, k, v, offsets, call)`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, cast

import torch
from torch import Tensor

from tzgen.ops import native as native_ops
from tzgen.ops.hstu_attention.call import Call

KERNELS = ("AUTO", "PYTORCH", "TRITON", "CPU_TORCH", "CPU_NATIVE")
FOLDER = "tzgen.ops.hstu_attention"
MODULES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {  # chosen kernel -> modules of forward and backward
        "CPU_TORCH": ("cpu", "cpu"),
        "CPU_NATIVE": ("native", "native"),
        "TRITON": ("triton_forward", "triton_backward"),
    }
)
NATIVE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Forward(Protocol):
    """Module with the forward of an implementation."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, call: Call) -> Tensor:
        """[L, H, attention_dim] x 2, [L, H, hidden_dim] -> [L, H, hidden_dim]."""


class Backward(Protocol):
    """Module with the backward of an implementation."""

    @staticmethod
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, call: Call
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Gradients of q, k, v and of the two bias tables (empty where there is no table)."""


def chosen_kernel(kernel: str, device: torch.device, dtype: torch.dtype) -> str:
    """What `kernel` comes to for tensors of `dtype` on `device`: a key of MODULES."""
    if kernel not in KERNELS:
        raise ValueError(f"hstu_attention has no kernel {kernel!r}; it has {', '.join(KERNELS)}")
    on_cpu = device.type == "cpu"
    if kernel == "TRITON":
        if dtype not in TRITON_DTYPES:
            raise ValueError(f"kernel TRITON computes float32 and halves, not {dtype}: use AUTO")
        if on_cpu and os.environ.get("TRITON_INTERPRET") != "1":  # Triton's own switch
            raise ValueError(
                "kernel TRITON needs a CUDA device, and q lies on the CPU: use AUTO or PYTORCH "
                "(or Triton's interpreter, TRITON_INTERPRET=1, which is for tests)"
            )
        return "TRITON"
    if kernel == "CPU_NATIVE":
        if not on_cpu or not native_ready(dtype):
            raise ValueError(
                f"kernel CPU_NATIVE cannot run on {device.type} in {dtype}, or its library is not "
                "built: run python -m tzgen.ops.native.build, or use PYTORCH"
            )
        return "CPU_NATIVE"
    if on_cpu:
        return "CPU_NATIVE" if kernel != "CPU_TORCH" and native_ready(dtype) else "CPU_TORCH"
    triton = kernel == "AUTO" and dtype in TRITON_DTYPES and triton_installed()
    return "TRITON" if triton else "CPU_TORCH"


@functools.cache
def triton_installed() -> bool:
    """Whether the package triton is there; it is imported by the kernels alone."""
    return importlib.util.find_spec("triton") is not None


def native_ready(dtype: torch.dtype) -> bool:
    """Whether the native library is built and computes in `dtype`."""
    return dtype in NATIVE_DTYPES and native_ops.available()


def forward_of(kernel: str, q: Tensor) -> Forward:
    """The implementation that `kernel` comes to for q, imported when first used."""
    return cast(Forward, _module(MODULES[chosen_kernel(kernel, q.device, q.dtype)][0]))


def backward_of(kernel: str, q: Tensor) -> Backward:
    """The same for the gradients."""
    return cast(Backward, _module(MODULES[chosen_kernel(kernel, q.device, q.dtype)][1]))


def _module(name: str) -> object:
    try:
        return importlib.import_module(f"{FOLDER}.{name}")
    except ModuleNotFoundError as missing:
        if missing.name != "triton":
            raise
        raise RuntimeError(
            "the Triton kernels need the package triton (pip install triton); "
            "kernel PYTORCH computes the same without it"
        ) from missing
