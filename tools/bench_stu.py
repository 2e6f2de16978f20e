# SPDX-License-Identifier: Apache-2.0
"""A stack of STU layers, forward and backward, against the same layers in plain PyTorch.

    python tools/bench_stu.py                            # CPU: the two bars, then memory against N
    python tools/bench_stu.py --shapes 8,1024,256 --pairs 31 --threads 1
    python tools/bench_stu.py --device cuda --json docs/benchmarks/stu.json

Two layers, 4 heads of D / 4, dropout 0.1, 1 to 10 targets a row, lengths uniform in [N / 4, N]. The
baseline has the same weights and the form of the public implementations: linear layers on the
ragged tokens, attention as einsum over padded [B, H, N, N] tensors. On CUDA, where such tensors do
not fit, its attention is the op's and only the rest is plain. Each round runs all candidates; a
ratio is baseline / candidate of one round. A bar is met when the interval's lower bound is at least
0.85 of it. On a busy machine read the ratio of processor time. Nothing else should run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import peak_memory
import torch
import torch.nn.functional as F
from bench_measure import Call, environment, lengths_of, peaks, rounds, save, spread, table
from torch import Tensor

from tzgen.modules.stu import STULayer
from tzgen.modules.stu_options import STUOptions
from tzgen.ops import native

Shape = tuple[int, int, int]  # B, N, D
BARS = {(8, 1024, 256): 5.0, (32, 200, 256): 1.6}
GPU_SHAPES = [(b, n, 512) for b in (32, 128) for n in (256, 512, 1024, 2048, 4096, 8192)]
MEMORY = (512, 1024, 2048, 4096, 8192)  # N of the memory table, two rows each
DENSE_LIMIT = 2048  # the longest N for which the baseline's memory is measured
HEADS, LAYERS, DROPOUT = 4, 2, 0.1


def options(dim: int, **changes: Any) -> STUOptions:
    """TorchEasyRec's layer, as the schema's defaults have it."""
    given: dict[str, Any] = dict.fromkeys(STUOptions.__dataclass_fields__)
    given |= {"embedding_dim": dim, "num_heads": HEADS, "hidden_dim": dim // HEADS}
    given |= {"attention_dim": dim // HEADS, "output_dropout_ratio": DROPOUT}
    given |= {"use_group_norm": False, "contextual_seq_len": 0, "scaling_seqlen": -1}
    given |= {"preset": "PRODUCTION", "append_stable": False, "window_keeps_contextual": True}
    given |= {"recompute_normed_x": True, "recompute_y": True, "full_attn_tail": 0}
    return STUOptions(**{**given, **changes})


@dataclass(frozen=True)
class Batch:
    """L tokens of B rows."""

    x: Tensor
    grad: Tensor
    offsets: Tensor
    targets: Tensor
    longest: int


def make_batch(shape: Shape, device: str, dtype: torch.dtype, lengths: str = "uniform") -> Batch:
    rows, longest, dim = shape
    make = torch.Generator().manual_seed(0)
    counts = lengths_of(lengths, rows, longest)
    targets = torch.minimum(torch.randint(1, 11, (rows,), generator=make), counts - 1).clamp(min=0)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    x, grad = (torch.randn(int(offsets[-1]), dim, generator=make).to(device, dtype) for _ in "xg")
    return Batch(x, grad, offsets.to(device), targets.to(device), longest)


def make_layers(
    dim: int, longest: int, device: str, dtype: torch.dtype, kernel: str, **changes: Any
) -> list[STULayer]:
    """The stack, always with the same weights."""
    torch.manual_seed(0)
    made = [
        STULayer(options(dim, **changes), max_seq_len=longest, kernel=kernel) for _ in range(LAYERS)
    ]
    return [layer.to(device, dtype).train() for layer in made]


def fused(layers: Sequence[STULayer], batch: Batch) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x, batch.offsets, max_len=batch.longest, num_targets=batch.targets)
        return x

    return call


def plain(layers: Sequence[STULayer], batch: Batch, *, padded: bool) -> Callable[[Tensor], Tensor]:
    """The baseline; mask and places are made once."""
    attention = padded_attention(batch) if padded else None

    def one(layer: STULayer, x: Tensor) -> Tensor:
        uvqk = layer.uvqk(layer.input_norm(x))
        u, v, q, k = torch.split(uvqk, layer.widths, dim=1)
        u = F.silu(u)
        v, q, k = (part.unflatten(1, (HEADS, -1)) for part in (v, q, k))
        if attention is None:
            o = layer.attend(q, k, v, batch.offsets, batch.longest, batch.targets, None)
        else:
            o = attention(q, k, v, layer.alpha, float(layer.divisor)).flatten(1)
        y = torch.cat([u, o, u * layer.output_norm(o)], dim=1)
        out: Tensor = x + layer.output(F.dropout(y, layer.dropout, training=layer.training))
        return out

    def call(x: Tensor) -> Tensor:
        for layer in layers:
            x = one(layer, x)
        return x

    return call


def padded_attention(batch: Batch) -> Callable[..., Tensor]:
    """Attention through [B, H, N, N] tensors."""
    lengths, longest = batch.offsets.diff(), batch.longest
    device = lengths.device
    row = torch.repeat_interleave(torch.arange(lengths.numel(), device=device), lengths)
    place = torch.arange(row.numel(), device=device) - batch.offsets[row]
    reach = torch.minimum(torch.arange(longest, device=device), (lengths - batch.targets)[:, None])
    seen = reach[:, :, None] > reach[:, None, :]
    seen = (seen | torch.eye(longest, dtype=torch.bool, device=device))[:, None]

    def pad(x: Tensor) -> Tensor:
        out = x.new_zeros(lengths.numel(), longest, x.size(1), x.size(2))
        return out.index_put((row, place), x)

    def call(q: Tensor, k: Tensor, v: Tensor, alpha: float, divisor: float) -> Tensor:
        scores = torch.einsum("bihd,bjhd->bhij", pad(q), pad(k)) * alpha
        weights = F.silu(scores) / divisor * seen
        return torch.einsum("bhij,bjhd->bihd", weights, pad(v))[row, place]

    return call


def step(layers: Sequence[STULayer], batch: Batch, call: Callable[[Tensor], Tensor]) -> Call:
    """Forward and backward to x and to every parameter."""
    x = batch.x.detach().requires_grad_()
    leaves = [x, *(p for layer in layers for p in layer.parameters())]

    def run() -> list[Tensor]:
        out = call(x)
        return [out.detach(), *torch.autograd.grad(out, leaves, batch.grad)]

    return run


def candidates(shape: Shape, device: str, dtype: torch.dtype, lengths: str) -> dict[str, Call]:
    """Name -> one step; "plain" is the baseline."""
    batch = make_batch(shape, device, dtype, lengths)
    variants: dict[str, dict[str, Any]] = {
        "fused": {"kernel": "AUTO"},
        "fused, uvqk recomputed": {"kernel": "AUTO", "recompute_uvqk": True},
        "fused, uvqk kept": {"kernel": "AUTO", "recompute_uvqk": False},
        "fused, pure torch": {"kernel": "CPU_TORCH"},
    }
    variants.pop("fused, uvqk kept" if device == "cpu" else "fused, uvqk recomputed")
    if device == "cuda" or not native.available():
        variants.pop("fused, pure torch")
    steps = {}
    base = make_layers(shape[2], shape[1], device, dtype, "AUTO")
    steps["plain"] = step(base, batch, plain(base, batch, padded=device == "cpu"))
    for name, change in variants.items():
        layers = make_layers(shape[2], shape[1], device, dtype, **change)
        steps[name] = step(layers, batch, fused(layers, batch))
    return steps


def check_equal(shape: Shape) -> float:
    """Largest relative difference of output and gradients, without dropout."""
    batch = make_batch(shape, "cpu", torch.float32)
    layers = make_layers(shape[2], shape[1], "cpu", torch.float32, "AUTO", output_dropout_ratio=0.0)
    got = step(layers, batch, fused(layers, batch))()
    want = step(layers, batch, plain(layers, batch, padded=True))()
    pairs = zip(got, want, strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def flops_and_bytes(batch: Batch, dim: int, size: int) -> tuple[float, float]:
    """Forward and backward of the stack: GEMMs 3 x 14 D^2 a token (4 D in, 3 D out), attention
    3.5 x 2 H (dqk + dv) a pair; 13 rows forward and 30 backward of D numbers a token."""
    history = (batch.offsets.diff() - batch.targets).double()
    pairs = (history * (history + 1) / 2 + batch.targets * (history + 1)).sum().item()
    tokens = batch.x.size(0)
    flops = 3 * tokens * 14 * dim**2 + 3.5 * pairs * 4 * dim
    return LAYERS * flops, LAYERS * tokens * dim * size * (13 + 30)


def measure(
    shape: Shape, pairs: int, device: str, dtype: torch.dtype, lengths: str
) -> list[dict[str, Any]]:
    """One record a candidate."""
    times = rounds(candidates(shape, device, dtype, lengths), pairs, device)
    work = flops_and_bytes(make_batch(shape, device, dtype, lengths), shape[2], dtype.itemsize)
    floor = peaks(device, dtype).floor(*work)
    records = []
    for name, found in times.items():
        wall, processor = found.against(times["plain"])
        seconds = spread(found.wall)
        bar = BARS.get(shape) if name == "fused" and device == "cpu" else None
        best = processor if torch.get_num_threads() == 1 and device == "cpu" else wall
        records.append(
            {
                "shape": shape,
                "lengths": lengths,
                "name": name,
                "ms": 1e3 * seconds.middle,
                "tflops": work[0] / seconds.middle / 1e12,
                "floor": floor / seconds.middle,
                "wall": wall,
                "processor": processor,
                "bar": bar,
                "met": None if bar is None else best.meets(bar),
            }
        )
    return records


def show(records: Sequence[dict[str, Any]]) -> str:
    """The table of times."""
    header = ("B,N,D lengths candidate", "ms", "TFLOP/s", "of floor", "x plain (wall)")
    lines = []
    for one in records:
        where = f"{','.join(map(str, one['shape']))} {one['lengths']} {one['name']}"
        bar = "" if one["bar"] is None else f">= {one['bar']}: {'met' if one['met'] else 'NOT met'}"
        cells = (f"{one['ms']:.1f}", f"{one['tflops']:.3f}", f"{one['floor']:.0%}")
        lines.append((where, *cells, str(one["wall"]), str(one["processor"]), bar))
    return table((*header, "x plain (processor)", "bar"), lines)


def peak_bytes(name: str, longest: int, dim: int) -> int:
    """What one step adds to a fresh process, above batch and weights."""
    command = [sys.executable, __file__, "--peak_of", name, "--shapes", f"2,{longest},{dim}"]
    return peak_memory.told(command)


def tell_peak(name: str, shape: Shape) -> None:
    chosen = "CPU_TORCH" if name == "pure torch" else "AUTO"
    layers = make_layers(shape[2], shape[1], "cpu", torch.float32, chosen)

    def run(batch: Batch) -> None:
        if name == "plain":  # not made for the others: its mask alone has B N^2 places
            step(layers, batch, plain(layers, batch, padded=True))()
        else:
            step(layers, batch, fused(layers, batch))()

    run(make_batch((2, 64, shape[2]), "cpu", torch.float32))  # libraries take their memory now
    batch = make_batch(shape, "cpu", torch.float32, "full")
    peak_memory.tell(peak_memory.growth(lambda: run(batch)))


def memory_table(dim: int) -> str:
    """Peak MiB by N; what a token adds from one N to the next is constant if growth is linear."""
    names = ("fused", "pure torch", "plain")
    lines, before = [], dict.fromkeys(names, 0)
    for longest in MEMORY:
        cells = [str(longest)]
        for name in names if longest <= DENSE_LIMIT else names[:2]:
            peak = peak_bytes(name, longest, dim)
            added = (peak - before[name]) / (2 * (longest if longest == MEMORY[0] else longest / 2))
            cells += [f"{peak / 2**20:.0f}", f"{added / 2**10:.1f}"]
            before[name] = peak
        lines.append(cells + ["-"] * (1 + 2 * len(names) - len(cells)))
    header = [cell for name in names for cell in (f"{name} MiB", "KiB a further token")]
    return table(("N (2 rows)", *header), lines)


def main(argv: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    flags.add_argument("--shapes", nargs="+", metavar="B,N,D")
    flags.add_argument("--lengths", nargs="+", choices=("uniform", "zipf", "full"))
    flags.add_argument("--pairs", type=int, default=15, help="rounds; at least 15 to report")
    flags.add_argument("--threads", type=int, default=torch.get_num_threads())
    flags.add_argument("--json", type=Path, metavar="PATH")
    flags.add_argument("--no_memory", action="store_true", help="leave out the memory table")
    flags.add_argument("--peak_of", help=argparse.SUPPRESS)
    args = flags.parse_args(argv)
    torch.set_num_threads(args.threads)
    on_gpu = args.device == "cuda"
    shapes = [tuple(map(int, shape.split(","))) for shape in args.shapes or ()]
    shapes = shapes or (GPU_SHAPES if on_gpu else list(BARS))
    if args.peak_of:
        tell_peak(args.peak_of, shapes[0])
        return
    about = environment(args.device)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    if not on_gpu:
        if not native.available():
            print("the native library is not built: these are the pure-torch kernels")
        print(f"largest difference from plain: {check_equal((3, 70, 64)):.1e}")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    records = [
        record
        for shape in shapes
        for lengths in args.lengths or (("uniform", "zipf") if on_gpu else ("uniform",))
        for record in measure(shape, args.pairs, args.device, dtype, lengths)
    ]
    save(args.json, {"machine": about, "records": [_plain(record) for record in records]})
    if peak_memory.measurable() and not (on_gpu or args.no_memory):
        print("\npeak memory of a step (forward and backward, two layers)")
        print(memory_table(shapes[0][2]))
    print(f"\nforward and backward, {LAYERS} layers, {HEADS} heads, dropout {DROPOUT}")
    print(show(records))


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """Spreads as lists, for JSON."""
    ratios = {n: list(vars(record[n]).values()) for n in ("wall", "processor")}
    return {**record, **ratios}


if __name__ == "__main__":
    main()
