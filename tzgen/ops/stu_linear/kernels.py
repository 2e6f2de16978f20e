# SPDX-License-Identifier: Apache-2.0
"""Which row kernels a STU layer's linear half runs on, beside the GEMMs of the BLAS.

AUTO         Triton on CUDA, else what PYTORCH means
PYTORCH      on a CPU the native C++ kernels where the library is built, else pure PyTorch
TRITON       Triton, or a refusal
CPU_NATIVE, CPU_TORCH    one tier of PYTORCH, for tests and measurements
"""

from __future__ import annotations

import os

import torch

from tzgen.ops import native

KERNELS = ("AUTO", "PYTORCH", "TRITON", "CPU_TORCH", "CPU_NATIVE")


def chosen_kernel(kernel: str, device: torch.device, dtype: torch.dtype) -> str:
    """TRITON, CPU_NATIVE or CPU_TORCH: what `kernel` comes to for tensors of `dtype`."""
    if kernel not in KERNELS:
        raise ValueError(f"stu_linear has no kernel {kernel!r}; it has {', '.join(KERNELS)}")
    on_cpu, double = device.type == "cpu", dtype == torch.float64
    if kernel == "TRITON":
        if double:
            raise ValueError("kernel TRITON computes float32 and halves, not float64: use AUTO")
        if on_cpu and os.environ.get("TRITON_INTERPRET") != "1":  # Triton's own switch
            raise ValueError("kernel TRITON needs a CUDA device; use AUTO or PYTORCH on a CPU")
        return "TRITON"
    ready = on_cpu and dtype == torch.float32 and native.available()
    if kernel == "CPU_NATIVE" and not ready:
        raise ValueError(
            f"kernel CPU_NATIVE cannot run on {device.type} in {dtype}, or its library is not "
            "built: run python -m tzgen.ops.native.build, or use PYTORCH"
        )
    if on_cpu:
        return "CPU_NATIVE" if ready and kernel != "CPU_TORCH" else "CPU_TORCH"
    return "TRITON" if kernel == "AUTO" and not double else "CPU_TORCH"
