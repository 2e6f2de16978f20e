# SPDX-License-Identifier: Apache-2.0
"""Peak memory of one piece of work: what resident memory grows by at most while it runs. Linux.

A process that measures calls `tell(growth(work))`; the one that wants the number starts it with
`told(command)`. A process of its own, because memory that a process has freed and kept would hide
what the work takes. `ru_maxrss` will not do: a child starts with the highest value of its parent,
and nothing sets it back. Large blocks that are freed go back to the system at once: by default
glibc keeps more and more of them, and peaks of equal work differ by a fifth. Resolution: about
1 MiB (the kernel counts pages a core at a time).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

LINE = "PEAK_MEMORY_BYTES "
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "262144"}  # mallopt(3): bytes from which a block is large
RESET_PEAK = "5"  # proc(5): sets VmHWM to what is resident now


def measurable() -> bool:
    """Whether this system can say."""
    return CLEAR_REFS.exists()


def growth(work: Callable[[], object]) -> int:
    """Bytes by which resident memory exceeds, at its peak during `work`, what it was before."""
    ctypes.CDLL(None).malloc_trim(0)  # freed memory goes back, or `work` would get it for nothing
    CLEAR_REFS.write_text(RESET_PEAK)
    before = _status("VmHWM")
    work()
    return _status("VmHWM") - before


def tell(count: int) -> None:
    """Print what `told` looks for."""
    print(f"{LINE}{count}", flush=True)


def told(command: Sequence[str]) -> int:
    """Run a process that tells a number of bytes, and return it."""
    environment = {**os.environ, **MALLOC}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith(LINE)]
    if done.returncode or len(lines) != 1:
        raise SystemExit(
            f"{' '.join(command)}\nended with {done.returncode} and told {len(lines)} numbers of "
            f"bytes, not 1:\n{done.stdout}{done.stderr}"
        )
    return int(lines[0].removeprefix(LINE))


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status, which has kB."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{STATUS} has no line {name}")
