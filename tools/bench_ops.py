# SPDX-License-Identifier: Apache-2.0
"""Every fused op: time, rate, share of the floor, and ratios to what one would run instead.

    python tools/bench_ops.py                                   # CPU, a small grid, two minutes
    python tools/bench_ops.py --compile --ops stu_output        # torch.compile of the reference too
    python tools/bench_ops.py --device cuda --json docs/benchmarks/ops.json

Columns: milliseconds; TFLOP/s, or GB/s of ops that are bound by memory; the floor (formulae below,
with the peaks measured here) over the time; how many times as long take the op's own reference,
that reference under torch.compile, and torch's causal softmax attention on the same padded shape.
Median of the rounds with a 95 % interval; "fwd+bwd" counts FLOP by 3.5 (attention) or 3 (GEMMs).
Lengths: uniform in [N / 4, N], or zipf: P(length) ~ 1 / length. Nothing else should run.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from bench_measure import (
    Call,
    Peaks,
    Spread,
    environment,
    lengths_of,
    peaks,
    rounds,
    save,
    spread,
    table,
)
from torch import Tensor

from tzgen.ops.dropout import dropout
from tzgen.ops.hstu_attention import MaskSpec, hstu_attention, hstu_attention_reference
from tzgen.ops.jagged_dense_bmm import (
    jagged_dense_bmm_broadcast_add,
    jagged_dense_bmm_broadcast_add_reference,
)
from tzgen.ops.stu_linear import (
    stu_input,
    stu_input_reference,
    stu_output,
)

HEADS = 4
OPS = ("hstu_attention", "stu_input", "stu_output", "dropout", "jagged_dense_bmm")


@dataclass(frozen=True)
class Shape:
    """B rows of at most N history tokens and `targets` candidates, 4 heads of width d."""

    rows: int
    longest: int
    width: int
    lengths: str
    targets: int

    def __str__(self) -> str:
        return f"{self.rows},{self.longest},{self.width} {self.lengths} +{self.targets}"

    def history(self) -> Tensor:
        return lengths_of(self.lengths, self.rows, self.longest)

    def offsets(self) -> Tensor:
        counts = self.history() + self.targets
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


@dataclass(frozen=True)
class Problem:
    """One op at one shape: what to differentiate, and how much work a forward is."""

    leaves: list[Tensor]
    ours: Callable[..., Tensor]
    reference: Callable[..., Tensor] | None
    softmax: Callable[[], Tensor] | None
    flops: float
    bytes: float
    backward_flops: float  # of forward and backward together, in forwards
    backward_bytes: float


def attention(shape: Shape, device: str, dtype: torch.dtype) -> Problem:
    """FLOP of the visible pairs; q, k, v, O move once, in backward seven rows more."""
    history, offsets, width = shape.history(), shape.offsets().to(device), shape.width
    total, longest = int(offsets[-1]), shape.longest + shape.targets
    leaves = [_random(device, dtype, total, HEADS, width) for _ in range(3)]
    targets = torch.full((shape.rows,), shape.targets, device=device)
    constants: dict[str, Any] = {"alpha": width**-0.5, "divisor": float(longest)}
    constants |= {"mask": MaskSpec(), "num_targets": targets}
    n = history.double()
    pairs = float((n * (n + 1) / 2 + shape.targets * (n + 1)).sum())
    row = total * HEADS * width * dtype.itemsize
    padded = [_random(device, dtype, shape.rows, HEADS, longest, width) for _ in range(3)]

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return hstu_attention_reference(q, k, v, offsets, **constants)

    cells = shape.rows * HEADS * longest**2
    return Problem(
        leaves,
        lambda q, k, v: hstu_attention(
            q, k, v, offsets, max_len=longest, kernel="AUTO", **constants
        ),
        reference if cells < 3e7 * (50 if device == "cuda" else 1) else None,
        lambda: F.scaled_dot_product_attention(*padded, is_causal=True),
        pairs * 4 * HEADS * width,
        4 * row,
        3.5,
        11 * row,
    )


def projection(shape: Shape, device: str, dtype: torch.dtype) -> Problem:
    """stu_input with D = H d: one row in, four out; backward five in, one out."""
    dim, total = HEADS * shape.width, int(shape.offsets()[-1])
    make = [(total, dim), (dim,), (dim,), (4 * dim, dim), (4 * dim,)]
    leaves = [_random(device, dtype, *size) for size in make]
    fixed: dict[str, Any] = {"widths": (dim,) * 4, "activated": "", "eps": 1e-6}
    row = total * dim * dtype.itemsize
    return Problem(
        leaves,
        lambda *x: _ends(stu_input(*x, **fixed)),
        lambda *x: _ends(stu_input_reference(*x, **fixed)),
        None,
        8 * total * dim**2,
        5 * row,
        3.0,
        11 * row,
    )


def _ends(parts: Sequence[Tensor]) -> Tensor:
    """One tensor that reads the whole of u, v, q and k, at little cost."""
    return sum(part @ part.new_ones(part.size(1)) for part in parts)  # type: ignore[return-value]


def output(shape: Shape, device: str, dtype: torch.dtype) -> Problem:
    """stu_output with dropout 0.1: O, u, x in, one row out; backward reads four, writes three."""
    dim, total = HEADS * shape.width, int(shape.offsets()[-1])
    make = [(total, dim), (total, dim), (total, dim), (dim,), (dim,), (dim, 3 * dim)]
    leaves = [_random(device, dtype, *size) for size in make]
    fixed: dict[str, Any] = {"output_form": "CONCAT_UOX", "activate_u": True, "eps": 1e-6}
    row = total * dim * dtype.itemsize

    def reference(attended: Tensor, u: Tensor, x: Tensor, *rest: Tensor) -> Tensor:
        s = F.silu(u)
        normed = F.layer_norm(attended, (dim,), rest[0], rest[1], 1e-6)
        y = F.dropout(torch.cat([s, attended, s * normed], 1), 0.1, training=True)
        return x + F.linear(y, rest[2])

    return Problem(
        leaves,
        lambda *x: stu_output(*x, **fixed, dropout=0.1, training=True),
        reference,
        None,
        6 * total * dim**2,
        4 * row,
        3.0,
        11 * row,
    )


def dropped(shape: Shape, device: str, dtype: torch.dtype) -> Problem:
    """Dropout alone against torch's: one row in, one out."""
    dim, total = HEADS * shape.width, int(shape.offsets()[-1])
    row = total * dim * dtype.itemsize
    return Problem(
        [_random(device, dtype, total, dim)],
        lambda x: dropout(x, 0.1, training=True),
        lambda x: F.dropout(x, 0.1, training=True),
        None,
        0.0,
        2 * row,
        2.0,
        4 * row,
    )


def row_maps(shape: Shape, device: str, dtype: torch.dtype) -> Problem:
    """jagged_dense_bmm: every row of the batch through its own d x d map."""
    width, total = shape.width, int(shape.offsets()[-1])
    offsets = shape.offsets().to(device)
    make = [(total, width), (shape.rows, width, width), (shape.rows, width)]
    leaves = [_random(device, dtype, *size) for size in make]
    moved = (2 * total + shape.rows * width) * width * dtype.itemsize
    return Problem(
        leaves,
        lambda x, w, b: jagged_dense_bmm_broadcast_add(x, offsets, w, b),
        lambda x, w, b: jagged_dense_bmm_broadcast_add_reference(x, offsets, w, b),
        None,
        2 * total * width**2,
        moved,
        3.0,
        3 * moved,
    )


BUILD: dict[str, Callable[[Shape, str, torch.dtype], Problem]] = {
    "hstu_attention": attention,
    "stu_input": projection,
    "stu_output": output,
    "dropout": dropped,
    "jagged_dense_bmm": row_maps,
}


def _random(device: str, dtype: torch.dtype, *size: int) -> Tensor:
    return torch.randn(size).to(device, dtype).requires_grad_()


def candidates(problem: Problem, backward: bool, compiles: bool) -> dict[str, Call]:
    """What is timed; "ours" first."""
    forms: dict[str, Callable[..., Tensor]] = {"ours": problem.ours}
    if problem.reference is not None:
        forms["reference"] = problem.reference
        if compiles:
            forms["compiled"] = torch.compile(problem.reference)
    calls = {}
    for name, form in forms.items():
        calls[name] = _step(form, problem.leaves, backward)
    if problem.softmax is not None and not backward:
        calls["softmax"] = torch.no_grad()(problem.softmax)
    return calls


def _step(form: Callable[..., Tensor], leaves: list[Tensor], backward: bool) -> Call:
    if not backward:
        return torch.no_grad()(lambda: form(*leaves))

    def run() -> Any:
        out = form(*leaves)
        return torch.autograd.grad(out, leaves, torch.ones_like(out), allow_unused=True)

    return run


def measure(
    name: str, shape: Shape, args: argparse.Namespace, dtype: torch.dtype, peak: Peaks
) -> list[dict[str, Any]]:
    """A record for forward, and one for forward and backward."""
    problem, records = BUILD[name](shape, args.device, dtype), []
    for backward in (False, True):
        times = rounds(candidates(problem, backward, args.compile), args.pairs, args.device)
        seconds = spread(times["ours"].wall)
        flops = problem.flops * (problem.backward_flops if backward else 1.0)
        moved = problem.backward_bytes if backward else problem.bytes
        record = {"op": name, "shape": str(shape), "pass": "fwd+bwd" if backward else "fwd"}
        record |= {"ms": 1e3 * seconds.middle, "ms_low": 1e3 * seconds.low}
        record |= {"ms_high": 1e3 * seconds.high, "tflops": flops / seconds.middle / 1e12}
        record |= {"gbs": moved / seconds.middle / 1e9}
        record |= {"floor": peak.floor(flops, moved) / seconds.middle}
        for other in ("reference", "compiled", "softmax"):
            ratio = times["ours"].against(times[other])[0] if other in times else None
            record[other] = None if ratio is None else list(vars(ratio).values())
        records.append(record)
    return records


def show(records: Sequence[dict[str, Any]]) -> str:
    """The table; a rate is TFLOP/s where there are FLOP, else GB/s."""
    header = ("op B,N,d lengths +targets", "pass", "ms", "95 %", "rate", "of floor")
    lines = []
    for one in records:
        rate = f"{one['tflops']:.3f} TF/s" if one["tflops"] else f"{one['gbs']:.1f} GB/s"
        ratios = [
            "-" if one[name] is None else str(Spread(*one[name]))
            for name in ("reference", "compiled", "softmax")
        ]
        interval = f"{one['ms_low']:.2f}-{one['ms_high']:.2f}"
        cells = (one["pass"], f"{one['ms']:.2f}", interval, rate, f"{one['floor']:.0%}", *ratios)
        lines.append((f"{one['op']} {one['shape']}", *cells))
    return table((*header, "x reference", "x compiled", "x softmax"), lines)


def grid(args: argparse.Namespace) -> list[Shape]:
    """The shapes asked for; by default a small grid on a CPU, the published one on a GPU."""
    on_gpu = args.device == "cuda"
    sizes = [tuple(map(int, size.split(","))) for size in args.sizes or ()]
    if not sizes and on_gpu:
        lengths = (256, 512, 1024, 2048, 4096, 8192)
        sizes = [(b, n, d) for b in (32, 128) for n in lengths for d in (64, 128)]
    sizes = sizes or [(32, 200, 32), (4, 1024, 64)]
    kinds = args.lengths or ("uniform", "zipf")
    targets = args.targets or ((0, 20, 2048) if on_gpu else (0, 20))
    return [Shape(b, n, d, kind, t) for b, n, d in sizes for kind in kinds for t in targets]


def main(argv: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    flags.add_argument("--ops", nargs="+", choices=OPS, default=OPS)
    flags.add_argument("--sizes", nargs="+", metavar="B,N,d")
    flags.add_argument("--lengths", nargs="+", choices=("uniform", "zipf", "full"))
    flags.add_argument("--targets", nargs="+", type=int)
    flags.add_argument("--pairs", type=int, default=15, help="rounds; at least 15 to report")
    flags.add_argument("--threads", type=int, default=torch.get_num_threads())
    flags.add_argument("--compile", action="store_true", help="needs a compiler; slow on a CPU")
    flags.add_argument("--json", type=Path, metavar="PATH")
    args = flags.parse_args(argv)
    torch.set_num_threads(args.threads)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    about, peak = environment(args.device), peaks(args.device, dtype)
    about |= {"gemm_tflops": peak.flops / 1e12, "copy_gbs": peak.bytes / 1e9}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    records = []
    for shape in grid(args):
        for name in args.ops:
            if name == "hstu_attention" or (shape.lengths, shape.targets) == ("uniform", 0):
                print(f"  {name} {shape}", flush=True)
                records += measure(name, shape, args, dtype, peak)
    save(args.json, {"machine": about, "records": records})
    print()
    print(show(records))


if __name__ == "__main__":
    main()
