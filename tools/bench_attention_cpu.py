# SPDX-License-Identifier: Apache-2.0
"""STU attention on a CPU, forward and backward, against the padded dense form.

    python tools/bench_attention_cpu.py                        # both shapes, then memory against N
    python tools/bench_attention_cpu.py --shape 8,1024,4,64 --pairs 31 --threads 1

Lengths are uniform in [N / 4, N] with 1 to 10 targets a row, float32. Each pair runs the dense form
and every kernel one after another; a ratio is dense / kernel of one pair. Each runs once before its
run is timed: else it would pay for the caches and pages that the other left. Printed are the median
and its 95 % interval (order statistics), of wall clock and of processor time: on a busy machine
the latter is the one to read. A bar is met when the lower bound is at least 0.85 of it: of wall
clock, or of processor time with --threads 1. Rows of the memory table have N tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import peak_memory
import torch
import torch.nn.functional as F
from torch import Tensor

from tzgen.ops import native
from tzgen.ops.hstu_attention import MaskSpec, hstu_attention

BARS = {(8, 1024, 4, 64): (15.0, 5.5), (32, 200, 4, 32): (7.0, 1.5)}  # native, pure torch
KERNELS = ("CPU_NATIVE", "CPU_TORCH")
LENGTHS = (512, 1024, 2048, 4096, 8192)  # of the memory table
DENSE_LIMIT = 2048  # the longest of them for the dense form
Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Inputs:
    """One batch: B rows of at most N tokens, H heads of width d."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    offsets: Tensor
    targets: Tensor
    longest: int


def make_inputs(shape: Shape, seed: int = 0, *, full: bool = False) -> Inputs:
    """Random rows of a shape (B, N, H, d); of N tokens each where `full`."""
    rows, longest, heads, width = shape
    make = torch.Generator().manual_seed(seed)
    least = longest if full else longest // 4
    lengths = torch.randint(least, longest + 1, (rows,), generator=make)
    targets = torch.minimum(torch.randint(1, 11, (rows,), generator=make), lengths - 1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    total = int(offsets[-1])
    q, k, v, grad = (torch.randn(total, heads, width, generator=make) for _ in range(4))
    return Inputs(q, k, v, grad, offsets, targets, longest)


def dense(inputs: Inputs) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The padded form with its [B, H, N, N] tensors; mask and places are made once."""
    lengths, longest = inputs.offsets.diff(), inputs.longest
    row = torch.repeat_interleave(torch.arange(lengths.numel()), lengths)
    place = torch.arange(row.numel()) - inputs.offsets[row]
    ids = torch.minimum(torch.arange(longest), (lengths - inputs.targets)[:, None])
    seen = ids[:, :, None] > ids[:, None, :]
    seen = (seen | torch.eye(longest, dtype=torch.bool))[:, None]
    alpha = inputs.q.size(2) ** -0.5

    def padded(x: Tensor) -> Tensor:
        out = x.new_zeros(lengths.numel(), longest, x.size(1), x.size(2))
        return out.index_put((row, place), x)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("bihd,bjhd->bhij", padded(q), padded(k)) * alpha
        weights = F.silu(scores) / longest * seen
        return torch.einsum("bhij,bjhd->bihd", weights, padded(v))[row, place]

    return call


def kernel(inputs: Inputs, name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The op with one of its CPU kernels."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return hstu_attention(
            q,
            k,
            v,
            inputs.offsets,
            max_len=inputs.longest,
            alpha=q.size(2) ** -0.5,
            divisor=float(inputs.longest),
            mask=MaskSpec(),
            num_targets=inputs.targets,
            kernel=name,
        )

    return call


def step(inputs: Inputs, call: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
    """Output and gradients."""
    leaves = [x.detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    out = call(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs.grad)]


def kernels_here() -> list[str]:
    """The kernels that this machine has."""
    return [name for name in KERNELS if name != "CPU_NATIVE" or native.available()]


@dataclass(frozen=True)
class Result:
    """One kernel at one shape; ratios are (median, low, high) against the dense form."""

    shape: Shape
    kernel: str
    milliseconds: float
    dense_milliseconds: float
    wall: tuple[float, float, float]
    processor: tuple[float, float, float]
    error: float


def measure(shape: Shape, pairs: int) -> list[Result]:
    """Interleaved runs of the dense form and of each kernel."""
    inputs = make_inputs(shape)
    calls = {"dense": dense(inputs), **{name: kernel(inputs, name) for name in kernels_here()}}
    wanted = step(inputs, calls["dense"])
    errors = {name: _error(step(inputs, call), wanted) for name, call in calls.items()}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(pairs):
        for name, call in calls.items():
            step(inputs, call)
            started, used = time.perf_counter(), time.process_time()
            step(inputs, call)
            wall[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - used)
    return [
        Result(
            shape,
            name,
            1e3 * median(wall[name])[0],
            1e3 * median(wall["dense"])[0],
            median([a / b for a, b in zip(wall["dense"], wall[name], strict=True)]),
            median([a / b for a, b in zip(processor["dense"], processor[name], strict=True)]),
            errors[name],
        )
        for name in calls
        if name != "dense"
    ]


def _error(got: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest relative L2 of output and gradients."""
    pairs = zip(got, wanted, strict=True)
    return max(float(torch.linalg.norm(a - b) / torch.linalg.norm(b)) for a, b in pairs)


def median(values: list[float]) -> tuple[float, float, float]:
    """The median and the order statistics that enclose it with 95 % confidence."""
    ordered, count = sorted(values), len(values)
    low = 0
    while sum(math.comb(count, k) for k in range(low + 1)) / 2**count <= 0.025:
        low += 1
    low = max(low - 1, 0)
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return middle, ordered[low], ordered[count - 1 - low]


def peak_bytes(name: str, longest: int) -> int:
    """Most memory that one step takes above its inputs, in a process of its own."""
    command = [sys.executable, __file__, "--peak_of", name, "--shape", f"2,{longest},4,64"]
    return peak_memory.told(command)


def _tell_peak(name: str, shape: Shape) -> None:
    def call(inputs: Inputs) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return dense(inputs) if name == "dense" else kernel(inputs, name)

    warm, inputs = make_inputs((2, 64, *shape[2:])), make_inputs(shape, full=True)
    step(warm, call(warm))  # libraries take their memory now
    peak_memory.tell(peak_memory.growth(lambda: step(inputs, call(inputs))))


def print_times(results: list[Result]) -> None:
    """The table of ratios, with whether each bar is met."""
    print(f"{'B,N,H,d':>14} {'kernel':>11} {'ms':>8} {'dense':>8}   ratio (wall)      ", end="")
    print("ratio (processor)   bar   error")
    for one in results:
        bar = BARS.get(one.shape, (0.0, 0.0))[KERNELS.index(one.kernel)]
        ratio = one.processor if torch.get_num_threads() == 1 else one.wall
        met = "" if bar == 0 else "met" if ratio[1] >= 0.85 * bar else "missed"
        wall, used = (f"{m:5.1f} [{a:5.1f},{b:5.1f}]" for m, a, b in (one.wall, one.processor))
        name = ",".join(map(str, one.shape))
        print(
            f"{name:>14} {one.kernel:>11} {one.milliseconds:8.1f} {one.dense_milliseconds:8.1f}"
            f"   {wall}   {used}   {bar:g} {met}   {one.error:.0e}"
        )


def print_memory(lengths: Sequence[int]) -> list[dict[str, object]]:
    """Peak MiB of a step on two rows of N tokens (H 4, d 64).

    What a token adds from one N to the next is constant if growth is linear.
    """
    rows: list[dict[str, object]] = []
    before: dict[str, tuple[int, int]] = {}
    print(f"\n{'N':>6} {'kernel':>11} {'peak MiB':>9} {'KiB a further token':>20}")
    for longest in lengths:
        for name in [*kernels_here(), *(["dense"] if longest <= DENSE_LIMIT else [])]:
            peak, tokens = peak_bytes(name, longest), 2 * longest
            held, counted = before.get(name, (0, 0))
            added = (peak - held) / 2**10 / (tokens - counted)
            before[name] = peak, tokens
            rows.append({"N": longest, "kernel": name, "peak_bytes": peak, "tokens": tokens})
            print(f"{longest:>6} {name:>11} {peak / 2**20:9.1f} {added:20.1f}")
    return rows


def _shape(text: str) -> Shape:
    rows, longest, heads, width = map(int, text.split(","))
    return rows, longest, heads, width


def main(argv: Sequence[str] | None = None) -> None:
    """Parse flags, measure, print; JSON with versions and device where asked for."""
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--shape", type=_shape, action="append", help="B,N,H,d; repeatable")
    cli.add_argument("--pairs", type=int, default=15)
    cli.add_argument("--threads", type=int, default=2)
    cli.add_argument("--no_memory", action="store_true", help="leave the memory table out")
    cli.add_argument("--json", help="write the figures to this file")
    cli.add_argument("--peak_of", help=argparse.SUPPRESS)
    flags = cli.parse_args(argv)
    torch.set_num_threads(flags.threads)
    if flags.peak_of:
        _tell_peak(flags.peak_of, flags.shape[0])
        return
    results = [one for shape in flags.shape or BARS for one in measure(shape, flags.pairs)]
    print_times(results)
    skipped = flags.no_memory or not peak_memory.measurable()
    memory = [] if skipped else print_memory(LENGTHS)
    if flags.json:
        told = {
            "torch": torch.__version__,
            "processor": platform.processor() or platform.machine(),
            "threads": flags.threads,
            "pairs": flags.pairs,
            "times": [vars(one) for one in results],
            "memory": memory,
        }
        with open(flags.json, "w") as out:  # noqa: PTH123
            json.dump(told, out, indent=1)


if __name__ == "__main__":
    main()
