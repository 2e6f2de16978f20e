# SPDX-License-Identifier: Apache-2.0
"""Scoring from cached keys and values against running the whole sequence: time, memory, difference.

    OMP_WAIT_POLICY=PASSIVE python tools/bench_cached.py
    OMP_WAIT_POLICY=PASSIVE python tools/bench_cached.py --threads 1 --pairs 25 --kernel CPU_TORCH

An STU stack with random weights; a user's history, and candidates scored in micro-batches.

    uncached     one forward of history and all candidates
    rerun        a forward of history and micro-batch, for every micro-batch
    cold         the history is encoded into pages, then every micro-batch scored against them
    warm         the pages are there: all candidates in one call of `score`, whose attention holds a
                 tile of scores at a time, however many candidates there are
    warm_calls   the same with a call of `score` for every micro-batch, as separate requests are
    recompute    a longer history and new events are encoded into pages
    append       the new events alone, behind the pages of the longer history

Every way runs once in each round; ratios are medians over rounds with a 95 % interval from order
statistics, and a bar is met where the interval's lower bound is within 15 % of it. With one thread,
CPU seconds are counted. Peak memory is what a fresh process grows by, over its state before the
run. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import peak_memory
import torch
from google.protobuf import text_format
from torch import Tensor

from tzgen.config.options import options
from tzgen.modules.kv_cache import PagedKVCache
from tzgen.modules.sequence import TokenSequence
from tzgen.modules.stu import STUStack
from tzgen.modules.stu_cache import continued
from tzgen.modules.stu_options import STUOptions
from tzgen.ops.hstu_attention import chosen_kernel
from tzgen.protos import module_pb2

WAYS = ("uncached", "rerun", "cold", "warm", "warm_calls", "recompute", "append")


@dataclass(frozen=True)
class Claim:
    """`slow` / `fast` at least `bar`, or at most it where `most`."""

    text: str
    slow: str
    fast: str
    bar: float
    most: bool = False


CLAIMS = (
    Claim("micro-batches: rerun / cold", "rerun", "cold", 5.0),
    Claim("cold cache: cold / uncached", "cold", "uncached", 1.15, most=True),
    Claim("warm user: uncached / warm", "uncached", "warm", 5.0),
    Claim("  a call a micro-batch", "uncached", "warm_calls", 5.0),
    Claim("new events: recompute / append", "recompute", "append", 20.0),
)


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--history", type=int, default=1000)
    flags.add_argument("--candidates", type=int, default=200)
    flags.add_argument("--micro_batch", type=int, default=20)
    flags.add_argument("--append_history", type=int, default=2000)
    flags.add_argument("--new_events", type=int, default=16)
    flags.add_argument("--users", type=int, default=1)
    flags.add_argument("--width", type=int, default=256)
    flags.add_argument("--heads", type=int, default=4)
    flags.add_argument("--layers", type=int, default=2)
    flags.add_argument("--preset", default="PRODUCTION", choices=["PRODUCTION", "PAPER"])
    flags.add_argument("--relative_bias", action="store_true", help="position and time tables")
    flags.add_argument("--page_size", type=int, default=64)
    flags.add_argument("--kernel", default="AUTO")
    flags.add_argument("--pairs", type=int, default=15, help="rounds in which every way runs once")
    flags.add_argument("--threads", type=int, default=2)
    flags.add_argument("--skip_memory", action="store_true", help="leave peak memory out")
    flags.add_argument("--output_dir", default="experiments/bench_cached")
    flags.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    return flags


def stack_of(args: argparse.Namespace) -> STUStack:
    """An append-stable stack in evaluation."""
    longest = max(args.history + args.candidates, args.append_history + args.new_events)
    head = args.width // args.heads
    bias = "relative_bias { use_position: true use_time: true }" if args.relative_bias else ""
    text = (
        f"embedding_dim: {args.width} num_heads: {args.heads} attention_dim: {head} "
        f"hidden_dim: {head} preset: {args.preset} append_stable: true {bias}"
    )
    chosen = options(STUOptions, text_format.Parse(text, module_pb2.STU()))
    stack = STUStack(chosen, num_layers=args.layers, max_seq_len=longest, kernel=args.kernel)
    return stack.eval()


class Bench:
    """The ways as methods that return what they computed."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.stack = args, stack_of(args)
        self.given: dict[tuple[int, int, int], dict[str, Tensor]] = {}
        self.history = self._random(args.history)
        self.candidates = self._random(args.candidates)
        self.long_history = self._random(args.append_history + args.new_events)
        shape = self.stack.cache_shape(page_size=args.page_size)
        tokens = args.history + args.append_history + 2 * self.long_history.size(1)
        pages = args.users * (shape.pages_of(tokens) + 8)
        self.pages = PagedKVCache(shape, num_pages=pages)
        self.warmed = self._encode(self.history)
        self.grown = self._encode(self.long_history[:, : args.append_history])

    def _random(self, count: int) -> Tensor:
        return torch.randn(self.args.users, count, self.args.width)

    def _given(self, cached: int, count: int, targets: int) -> dict[str, Tensor]:
        """What comes with a request beside features: made once, in the round that is not timed."""
        users, key = self.args.users, (cached, count, targets)
        if key not in self.given:
            request = cached + count - targets  # candidates share the time of the request
            times = torch.arange(cached, cached + count).clamp(max=request).repeat(users) * 60
            self.given[key] = {
                "lengths": torch.full((users,), count),
                "cached": torch.full((users,), cached),
                "timestamps": times,
                "query_time": torch.full((users,), 10**9),
            }
        return self.given[key]

    def new(self, x: Tensor, *, cached: int, targets: bool) -> TokenSequence:
        """Tokens x [users, n, D], candidates or events, behind `cached` ones of each user."""
        count = x.size(1)
        given = self._given(cached, count, count if targets else 0)
        return continued(x.flatten(0, 1), targets=targets, max_new=count, contextual_len=0, **given)

    def whole(self, x: Tensor, *, targets: int = 0) -> TokenSequence:
        """Tokens x [users, n, D] of whole rows, of which the last `targets` are candidates."""
        users, count = x.shape[:2]
        given = self._given(0, count, targets)
        made = continued(x.flatten(0, 1), targets=False, max_new=count, contextual_len=0, **given)
        return replace(made, num_targets=torch.full((users,), targets))

    def _encode(self, x: Tensor) -> list[int]:
        """Keys and values of a history, in pages of new sequences."""
        handles = [self.pages.create() for _ in range(x.size(0))]
        tokens = self.whole(x)
        _, layers = self.stack.prefill(tokens, states=False)
        with self.pages.write(handles, [x.size(1)] * len(handles)) as write:
            for index, layer in enumerate(layers):
                write.layer(index, layer.k, layer.v, tokens.offsets)
            if self.pages.shape.timestamps:
                write.timestamps(tokens.timestamps, tokens.offsets)
            write.commit()
        return handles

    def _score(self, handles: Sequence[int], size: int) -> Tensor:
        """States of all candidates, `size` of each user in a call."""
        views, out = self.pages.views(handles), []
        for part in self.candidates.split(size, dim=1):
            new = self.new(part, cached=self.args.history, targets=True)
            states = self.stack.score(new, views).x
            out.append(states.unflatten(0, (self.args.users, -1)))
        return torch.cat(out, dim=1)

    def _forward(self, candidates: Tensor) -> Tensor:
        count = candidates.size(1)
        x = torch.cat([self.history, candidates], dim=1)
        states = self.stack(self.whole(x, targets=count)).x
        return states.unflatten(0, (self.args.users, -1))[:, -count:]

    def uncached(self) -> Tensor:
        return self._forward(self.candidates)

    def rerun(self) -> Tensor:
        parts = self.candidates.split(self.args.micro_batch, dim=1)
        return torch.cat([self._forward(part) for part in parts], dim=1)

    def cold(self) -> Tensor:
        handles = self._encode(self.history)
        states = self._score(handles, self.args.micro_batch)
        for handle in handles:
            self.pages.free(handle)
        return states

    def warm(self) -> Tensor:
        return self._score(self.warmed, self.args.candidates)

    def warm_calls(self) -> Tensor:
        return self._score(self.warmed, self.args.micro_batch)

    def recompute(self) -> Tensor:
        handles = self._encode(self.long_history)
        view = self.pages.views(handles)[-1]
        assert view.table is not None, "pages have a table"
        held = view.k[view.table].flatten(1, 2)[:, : self.long_history.size(1)]
        last = held[:, -self.args.new_events :].flatten(0, 1).clone()
        for handle in handles:
            self.pages.free(handle)
        return last

    def append(self) -> Tensor:
        """Left without commit, so that every round appends to the same history."""
        x = self.long_history[:, -self.args.new_events :]
        new = self.new(x, cached=self.args.append_history, targets=False)
        with self.pages.write(self.grown, [x.size(1)] * x.size(0)) as write:
            _, layers = self.stack.append(new, self.pages.views(self.grown), states=False)
            for index, layer in enumerate(layers):
                write.layer(index, layer.k, layer.v, new.offsets)
        return layers[-1].k

    def ways(self) -> dict[str, Callable[[], Tensor]]:
        return {name: getattr(self, name) for name in WAYS}

    def differences(self) -> dict[str, float]:
        """Largest absolute difference of each cached way from the uncached one."""
        whole, again = self.uncached(), self.recompute()
        pairs = {"rerun": (self.rerun(), whole), "cold": (self.cold(), whole)}
        pairs |= {"warm": (self.warm(), whole), "warm_calls": (self.warm_calls(), whole)}
        pairs |= {"append": (self.append(), again)}
        return {name: float((a - b).abs().max()) for name, (a, b) in pairs.items()}


def timed(ways: Mapping[str, Callable[[], Tensor]], pairs: int, clock: Callable[[], float]) -> dict:
    """Seconds of every way in every round; one round before that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(pairs + 1):
        for name, way in ways.items():
            began = clock()
            way()
            if turn > 0:
                seconds[name].append(clock() - began)
    return seconds


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and the order statistics that enclose it with 95 % (binomial) probability."""
    ordered, count, low = sorted(values), len(values), 0
    below = 0.5**count
    while low < count // 2 and below + math.comb(count, low + 1) * 0.5**count <= 0.025:
        low += 1
        below += math.comb(count, low) * 0.5**count
    return median(ordered), ordered[low], ordered[count - 1 - low]


def judge(claim: Claim, seconds: Mapping[str, Sequence[float]]) -> dict[str, object]:
    pairs = zip(seconds[claim.slow], seconds[claim.fast], strict=True)
    middle, low, high = interval([slow / fast for slow, fast in pairs])
    met = high <= claim.bar / 0.85 if claim.most else low >= 0.85 * claim.bar
    sign = "<=" if claim.most else ">="
    return {
        "claim": claim.text,
        "ratio": middle,
        "low": low,
        "high": high,
        "bar": f"{sign} {claim.bar:g}",
        "met": met,
    }


def child_peak(args: argparse.Namespace) -> None:
    """Tell how much the process grows in one run of `args.peak`."""
    bench = Bench(args)
    small = Bench(
        argparse.Namespace(**{**vars(args), "history": 64, "append_history": 64, "candidates": 2})
    )
    small.ways()[args.peak]()  # libraries take their memory now
    peak_memory.tell(peak_memory.growth(bench.ways()[args.peak]))


def peaks(argv: Sequence[str]) -> dict[str, int]:
    """Peak bytes of every way, each in a process of its own; none where that cannot be measured."""
    if not peak_memory.measurable():
        return {}
    command = [sys.executable, __file__, *argv, "--peak"]
    return {way: peak_memory.told([*command, way]) for way in WAYS}


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def report(found: dict) -> str:
    """The tables."""
    lines = [f"{'way':<12}{'ms':>9}{'95 %':>18}{'peak MiB':>10}{'difference':>12}"]
    for name, (middle, low, high) in found["milliseconds"].items():
        peak = found["peak_bytes"].get(name)
        size = "" if peak is None else f"{peak / 2**20:.1f}"
        gap = found["differences"].get(name)
        error = "" if gap is None else f"{gap:.1e}"
        spread = f"{low:.2f}-{high:.2f}"
        lines.append(f"{name:<12}{middle:>9.2f}{spread:>18}{size:>10}{error:>12}")
    lines += ["", f"{'claim':<34}{'ratio':>8}{'95 %':>16}{'bar':>9}{'met':>6}"]
    for row in found["claims"]:
        spread = f"{row['low']:.2f}-{row['high']:.2f}"
        met = "yes" if row["met"] else "NO"
        lines.append(f"{row['claim']:<34}{row['ratio']:>8.2f}{spread:>16}{row['bar']:>9}{met:>6}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        if args.peak is not None:
            child_peak(args)
            return
        bench = Bench(args)
        differences = bench.differences()
        clock = time.thread_time if args.threads == 1 else time.perf_counter
        seconds = timed(bench.ways(), args.pairs, clock)
    found = {
        "options": vars(args),
        "clock": "CPU seconds" if args.threads == 1 else "wall seconds",
        "kernel": chosen_kernel(args.kernel, torch.device("cpu"), torch.float32),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "milliseconds": {
            name: [1e3 * value for value in interval(values)] for name, values in seconds.items()
        },
        "differences": differences,
        "peak_bytes": {} if args.skip_memory else peaks(argv),
        "claims": [judge(claim, seconds) for claim in CLAIMS],
        "seconds": seconds,
    }
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench_cached.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"{found['processor']}, {args.threads} threads, torch {found['torch']}, ", end="")
    print(f"kernel {found['kernel']}, {found['clock']}\n{report(found)}")
    print(f"\neverything: {folder / 'bench_cached.json'}")


if __name__ == "__main__":
    main()
