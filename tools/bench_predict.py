# SPDX-License-Identifier: Apache-2.0
"""When does prediction gain from encoding histories apart? What models/dlrm_hstu.py does, measured.

    OMP_WAIT_POLICY=PASSIVE python tools/bench_predict.py
    OMP_WAIT_POLICY=PASSIVE python tools/bench_predict.py --rows 8 --history 1000 --candidates 200

A DlrmHSTU transducer with random weights predicts one batch of each shape: by one plain forward,
and by encoding the histories once and scoring candidates in chunks of each size. Ways alternate;
the ratio is the median over rounds of a way's time over the plain forward's, below 1 where it
pays. `memory`: the largest tensor of the way over that of the plain forward.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from google.protobuf import text_format
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tzgen.models.hstu_options import hstu_options
from tzgen.modules.sequence import Events
from tzgen.modules.stu_cache import candidate_chunks
from tzgen.modules.transducer import HSTUTransducer
from tzgen.protos import module_pb2

CONTEXTUAL = 4


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operator returned."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple) else (out,):
            if isinstance(value, Tensor):
                self.bytes = max(self.bytes, value.numel() * value.element_size())
        return out


def transducer_of(args: argparse.Namespace) -> HSTUTransducer:
    text = f"""
        stu {{ embedding_dim: {args.dim} num_heads: {args.heads}
               hidden_dim: {args.dim // args.heads} attention_dim: {args.dim // args.heads} }}
        attn_num_layers: {args.layers}
        positional_encoder {{ num_position_buckets: 4096 num_time_buckets: 64
                              use_time_encoding: true }}
        input_preprocessor {{ contextual_preprocessor {{
          content_encoder {{ slice_content_encoder {{}} }}
          content_mlp {{ simple_mlp {{ hidden_dim: {args.dim} }} }} }} }}
        output_postprocessor {{ layernorm_postprocessor {{}} }}"""
    made = HSTUTransducer(
        hstu_options(text_format.Parse(text, module_pb2.HSTU())),
        uih_dim=args.dim,
        candidate_dim=args.dim,
        contextual_dim=args.dim,
        contextual_len=CONTEXTUAL,
        max_seq_len=4096,
        kernel=args.kernel,
    )
    return made.eval().to(args.device)


def events_of(args: argparse.Namespace, rows: int, history: int, candidates: int) -> Events:
    """Rows of equal length, times rising to the request."""
    device = args.device

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    def each(value: int, count: int = rows) -> Tensor:
        return torch.full((count,), value, device=device)

    return Events(
        uih=numbers(rows * history, args.dim),
        uih_lengths=each(history),
        uih_timestamps=torch.arange(history, device=device).repeat(rows) * 60,
        num_candidates=each(candidates),
        candidate_timestamps=each(history * 60, rows * candidates),
        query_time=each(history * 60),
        max_uih_len=history,
        max_candidates=candidates,
        candidates=numbers(rows * candidates, args.dim),
        contextual=numbers(rows, CONTEXTUAL, args.dim),
    )


def cached(transducer: HSTUTransducer, events: Events, size: int) -> Tensor:
    cache = transducer.encode_user(events)
    return torch.cat([transducer.score(part, cache) for part in candidate_chunks(events, size)])


def measure(args: argparse.Namespace, rows: int, history: int, candidates: int) -> dict[str, Any]:
    """Ratios to the plain forward, by chunk size."""
    transducer, events = transducer_of(args), events_of(args, rows, history, candidates)
    total = rows * candidates
    ways: dict[str, Callable[[], Tensor]] = {"plain": lambda: transducer(events)}
    for size in sorted({*(s for s in args.chunks if s < total), total}):
        ways[str(size)] = lambda s=size: cached(transducer, events, s)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory = {}
    with torch.no_grad():
        want = transducer(events)
        for name, way in ways.items():
            with Largest() as largest:
                difference = float((way() - want).abs().max())
            assert difference < 1e-4, f"{name} differs by {difference}"
            memory[name] = largest.bytes
        for _ in range(args.rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                if args.device != "cpu":
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - start)
    plain = seconds.pop("plain")
    return {
        "rows": rows,
        "history": history,
        "candidates": candidates,
        "plain_ms": round(1e3 * median(plain), 2),
        "ratio": {n: round(median(map(_over, s, plain)), 3) for n, s in seconds.items()},
        "memory": {n: round(memory[n] / memory["plain"], 3) for n in seconds},
    }


def _over(first: float, second: float) -> float:
    return first / second


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("rows", [1, 8, 64]), ("history", [5, 50, 200, 1000])):
        made.add_argument(f"--{name}", type=int, nargs="+", default=default)
    made.add_argument("--candidates", type=int, nargs="+", default=[20, 200])
    made.add_argument("--chunks", type=int, nargs="+", default=[20, 256, 1024, 4096])
    for name, number in (("dim", 128), ("heads", 4), ("layers", 2), ("rounds", 5), ("threads", 0)):
        made.add_argument(f"--{name}", type=int, default=number)
    made.add_argument("--tokens", type=int, default=40_000, help="larger batches are left out")
    made.add_argument("--kernel", default="PYTORCH")
    made.add_argument("--device", default="cpu")
    return made


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}))
    for shape in itertools.product(args.rows, args.history, args.candidates):
        if shape[0] * (shape[1] + shape[2]) <= args.tokens:
            print(json.dumps(measure(args, *shape)), flush=True)


if __name__ == "__main__":
    main()
