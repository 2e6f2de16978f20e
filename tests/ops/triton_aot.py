# SPDX-License-Identifier: Apache-2.0
"""Compile Triton kernels for a GPU that is not there: a driver that names one and launches nothing.

Host code runs as it is, on CPU tensors, and what it launches is compiled for the target down to
machine code by the ptxas that Triton carries. Not to be mixed with the interpreter in one process.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes that one program may have


@dataclass(frozen=True)
class Compiled:
    """What became of one kernel variant."""

    name: str
    shared: int  # bytes
    registers: int  # of a thread
    spilled: int  # bytes of a thread that went to memory


class AbsentDevice:
    """A driver for compute capability `capability`, e.g. 90. `compiled` collects the variants."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.compiled: list[Compiled] = []
        self.utils = self  # Triton asks driver.utils for the two functions below

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        self.compiled.append(Compiled(name, shared, *resources(binary)))
        return object(), object(), 0, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_MEMORY[self.capability], "multiprocessor_count": 132}

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps what it compiled by device, not by target

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *args: None


def resources(binary: bytes) -> tuple[int, int]:
    """Registers and spilled bytes a thread, from a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(CUOBJDUMP), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers = max(int(n) for n in re.findall(r"REG:(\d+)", text))
    return registers, max(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", text))
