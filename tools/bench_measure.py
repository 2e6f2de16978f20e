# SPDX-License-Identifier: Apache-2.0
"""What the kernel benchmarks share: interleaved rounds, intervals, floors of a machine, lengths.

A round runs every candidate once, one after another, so that a disturbance meets all of them.
Ratios are taken inside a round. Intervals are order statistics that enclose the median with 95 %.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], Any]


@dataclass(frozen=True)
class Spread:
    """A median and its 95 % interval."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def meets(self, bar: float) -> bool:
        """Whether the lower bound is at least 0.85 of `bar`."""
        return self.low >= 0.85 * bar


def spread(values: Sequence[float]) -> Spread:
    """Median and interval of independent values; of fewer than 6, from smallest to largest."""
    ordered, count = sorted(values), len(values)
    outside, rank = 0.0, 0
    while (outside := outside + math.comb(count, rank) / 2**count) <= 0.025:
        rank += 1
    low = max(rank - 1, 0)
    return Spread(median(ordered), ordered[low], ordered[count - 1 - low])


@dataclass(frozen=True)
class Times:
    """Seconds of every round: by the wall clock, and of the processor (CPU only)."""

    wall: list[float]
    processor: list[float]

    def against(self, other: Times) -> tuple[Spread, Spread]:
        """How many times as long `other` takes, round by round: wall clock, processor."""
        return (
            spread([b / a for a, b in zip(self.wall, other.wall, strict=True)]),
            spread([b / a for a, b in zip(self.processor, other.processor, strict=True)]),
        )


def rounds(calls: Mapping[str, Call], count: int, device: str) -> dict[str, Times]:
    """Every call `count` times, interleaved, after two rounds that are not counted."""
    found = {name: Times([], []) for name in calls}
    for index in range(count + 2):
        for name, call in calls.items():
            wait(device)
            wall, processor = time.perf_counter(), time.process_time()
            call()
            wait(device)
            if index >= 2:
                found[name].wall.append(time.perf_counter() - wall)
                found[name].processor.append(time.process_time() - processor)
    return found


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Peaks:
    """FLOP/s of a large GEMM and bytes/s of a copy, measured here."""

    flops: float
    bytes: float

    def floor(self, flops: float, moved: float) -> float:
        """Seconds below which nothing that computes and moves this much can go."""
        return max(flops / self.flops, moved / self.bytes)


def peaks(device: str, dtype: torch.dtype) -> Peaks:
    """Best of several runs; the copy is larger than any cache."""
    size = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.zeros(1 << (30 if device == "cuda" else 26), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    times = rounds({"gemm": lambda: a @ b, "copy": lambda: target.copy_(source)}, 9, device)
    gemm, copy = (min(times[name].wall) for name in ("gemm", "copy"))
    return Peaks(2 * size**3 / gemm, 2 * source.numel() / copy)


def lengths_of(kind: str, rows: int, longest: int, seed: int = 0) -> Tensor:
    """int64 [rows]: uniform in [N / 4, N], zipf (P ~ 1 / length up to N), or full."""
    make = torch.Generator().manual_seed(seed)
    if kind == "uniform":
        return torch.randint(max(longest // 4, 1), longest + 1, (rows,), generator=make)
    if kind == "zipf":
        return (longest ** torch.rand(rows, generator=make, dtype=torch.float64)).long()
    return torch.full((rows,), longest, dtype=torch.int64)


def environment(device: str) -> dict[str, Any]:
    """Versions and device, for the record."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "device": _processor(),
    }
    if device == "cuda":
        found["device"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
        import triton

        found["triton"] = triton.__version__
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their longest cell; the first is aligned to the left."""
    widths = [max(len(row[i]) for row in [header, *lines]) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *lines]
    )


def save(path: Path | None, record: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"written: {path}")
