# SPDX-License-Identifier: Apache-2.0
"""Constrained beam search: its cost beside other ways, users a second, and how the trie grows.

    python tools/bench_decode.py
    python tools/bench_decode.py --items 1000000 --batch_size 64 --beams 50 --pairs 25
    python tools/bench_decode.py --device cuda --output_dir experiments/bench_decode

Search alone: logits are given, so that only the search is timed; milliseconds a level. Each way is
run in turn, a pair being two neighbouring runs; ratios are medians over pairs with a 95 % interval.

    trie, native     beam_search with the C++ level of tzgen.ops.trie_level, what a CPU should run
    trie             the same in torch alone; on a GPU the only one
    unconstrained    free_beam_search: the same without a trie, so that results may be no items
    plain top-k      unconstrained by log_softmax and torch.topk over all candidates
    dict trie        nested Python dicts walked for every beam, one masked write a beam
    dict, one write  the same with all legal codes of a level collected and written at once

With a decoder: two layers, width 128, cross-attention to 60 encoded tokens shared by the beams of a
row, random weights; encoding the history is not timed. Growth: seconds and bytes of Trie.from_codes
from 10^4 items up, random codes of four levels of 256. The catalogue that is searched has residual
k-means codes of random clustered vectors and a suffix that resolves collisions.
Nothing else should run on the machine; set OMP_WAIT_POLICY=PASSIVE.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from small_decoder import HEADS, LAYERS, WIDTH, Decoder
from torch import Tensor

from tzgen.decoding import BeamOptions, BeamState, Trie, beam_search, free_beam_search
from tzgen.ops.trie_level import level_op

HISTORY = 60
DictTrie = dict[int, "DictTrie"]


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--items", type=int, default=100_000, help="items of the catalogue")
    flags.add_argument("--sizes", default="256,256,256", help="codes of every level but the suffix")
    flags.add_argument("--batch_size", type=int, default=64)
    flags.add_argument("--beams", type=int, default=50)
    flags.add_argument("--pairs", type=int, default=15, help="interleaved runs of each way")
    flags.add_argument("--growth", default="1e4,1e5,1e6,1e7", help="catalogues built; '' for none")
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--threads", type=int, default=1, help="with 1, CPU seconds are counted")
    flags.add_argument("--output_dir", default="experiments/bench_decode")
    return flags


def draw_codes(items: int, sizes: Sequence[int], seed: int) -> Tensor:
    """About `items` distinct codes, shuffled; likely codes differ from prefix to prefix."""
    generator = torch.Generator().manual_seed(seed)
    columns, prefix = [], torch.zeros(items, dtype=torch.int64)
    for size in sizes:
        skewed = (torch.rand(items, generator=generator).square() * size).to(torch.int64)
        columns.append((skewed + prefix * 7919) % size)
        prefix = prefix * 31 + columns[-1] + 1
    key = torch.zeros(items, dtype=torch.int64)
    for column, size in zip(columns, sizes, strict=True):
        key = key * size + column
    key = torch.unique(key)
    key = key[torch.randperm(len(key), generator=generator)]
    columns = []
    for size in reversed(sizes):
        columns.append(key % size)
        key = key // size
    return torch.stack(columns[::-1], 1)


def quantise(items: int, sizes: Sequence[int]) -> Tensor:
    """Residual k-means codes of random clustered vectors, and a suffix that resolves collisions.

    sizes: codes of every level but the last, which is as large as the worst collision needs.
    """
    share = torch.arange(1.0, 4001.0) ** -0.8
    centres = torch.randn(len(share), 32)
    x = centres[torch.multinomial(share, items, replacement=True)] + 0.5 * torch.randn(items, 32)

    def nearest(points: Tensor, words: Tensor) -> Tensor:
        near = [words.square().sum(1) - 2 * part @ words.T for part in points.split(20_000)]
        return torch.cat([part.argmin(1) for part in near])

    columns = []
    for size in sizes:
        some = x[torch.randperm(items)[:20_000]]
        words = some[torch.randint(0, len(some), (size,))]
        for _ in range(8):
            found = nearest(some, words)
            total = torch.zeros_like(words).index_add_(0, found, some)
            words = total / torch.bincount(found, minlength=size).clamp_min(1).unsqueeze(1)
        columns.append(nearest(x, words))
        x = x - words[columns[-1]]
    shared = Trie.from_codes(torch.stack(columns, 1), sizes, shared_leaves=True)
    leaf = torch.searchsorted(shared.leaf_ptr[:-1], shared.places, right=True) - 1
    return torch.stack([*columns, shared.places - shared.leaf_ptr[leaf]], 1)


def clock(device: str, threads: int) -> Callable[[], float]:
    """CPU seconds of this thread where it is the only one: other processes disturb them less."""
    if device != "cpu":

        def synchronised() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return synchronised
    return time.thread_time if threads == 1 else time.perf_counter


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and its 95 % interval from order statistics (normal approximation)."""
    ordered, count = sorted(values), len(values)
    reach = 0.98 * math.sqrt(count)
    low = ordered[max(0, math.floor(count / 2 - reach))]
    high = ordered[min(count - 1, math.ceil(count / 2 + reach) - 1)]
    return median(ordered), low, high


def keep_freed_memory() -> None:
    """Have glibc's malloc keep freed blocks of a few MB, as it does in any process that once freed
    a larger one. Else every run pays for fresh pages, more or fewer by what was freed before it.
    """
    torch.zeros(31 << 20, dtype=torch.uint8)


def dict_trie(codes: Tensor) -> DictTrie:
    root: DictTrie = {}
    for item in codes.tolist():
        node = root
        for code in item:
            node = node.setdefault(code, {})
    return root


def dict_search(
    root: DictTrie, logits: Sequence[Tensor], batch: int, beams: int, *, one_write: bool
) -> Tensor:
    """The usual generate() loop with a function that lists the codes allowed after a prefix."""
    codes = torch.zeros(batch, 1, 0, dtype=torch.int64, device=logits[0].device)
    scores = torch.zeros(batch, 1, device=logits[0].device)
    for level, given in enumerate(logits):
        live = codes.size(1)
        shares = given.view(batch, -1, given.size(1))[:, :live].log_softmax(-1).flatten(0, 1)
        mask = torch.full_like(shares, -torch.inf)
        rows: list[int] = []
        columns: list[int] = []
        for row, prefix in enumerate(codes.flatten(0, 1).tolist()):
            node = root
            for code in prefix:
                node = node[code]
            if one_write:
                rows += [row] * len(node)
                columns += node
            else:
                mask[row, list(node)] = 0
        if one_write:
            mask[rows, columns] = 0
        total = (shares + mask).view(batch, live, -1) + scores.unsqueeze(2)
        scores, codes = kept(total, codes, beams, root if level == 0 else None)
    return codes


def kept(total: Tensor, codes: Tensor, beams: int, root: DictTrie | None) -> tuple[Tensor, Tensor]:
    """The best of all candidates by torch.topk; at the first level no more than there are codes."""
    size = total.size(2)
    limit = min(beams, total.size(1) * size, len(root) if root is not None else beams)
    scores, slots = total.flatten(1).topk(limit)
    parents = codes.gather(1, (slots // size).unsqueeze(2).expand(-1, -1, codes.size(2)))
    return scores, torch.cat([parents, (slots % size).unsqueeze(2)], 2)


def plain_search(logits: Sequence[Tensor], batch: int, beams: int) -> Tensor:
    codes = torch.zeros(batch, 1, 0, dtype=torch.int64, device=logits[0].device)
    scores = torch.zeros(batch, 1, device=logits[0].device)
    for given in logits:
        shares = given.view(batch, -1, given.size(1))[:, : codes.size(1)].log_softmax(-1)
        scores, codes = kept(shares + scores.unsqueeze(2), codes, beams, None)
    return codes


def search_alone(
    args: argparse.Namespace, codes: Tensor, trie: Trie
) -> dict[str, Callable[[], object]]:
    """The ways to search with the same logits given at every level.

    The beams of a row get equal ones, so that all ways find the same whatever their order of beams.
    """
    batch, beams, device = args.batch_size, args.beams, args.device
    options = BeamOptions(beams=beams)
    given = [
        torch.randn(batch, 1, size, device=device).expand(-1, beams, -1).reshape(-1, size)
        for size in trie.sizes
    ]

    def step(level: int, state: BeamState) -> Tensor:
        logits = given[level].view(batch, beams, -1)[:, : state.num_beams]
        return logits.flatten(0, 1)

    root, op = dict_trie(codes), level_op(device)
    ways: dict[str, Callable[[], object]] = {}
    if op is not None:
        ways["trie, native"] = lambda: beam_search(step, trie, batch, options, level_op=op).codes
    return ways | {
        "trie": lambda: beam_search(step, trie, batch, options).codes,
        "unconstrained": lambda: (
            free_beam_search(step, trie.sizes, batch, options, device=device).codes
        ),
        "plain top-k": lambda: plain_search(given, batch, beams),
        "dict trie": lambda: dict_search(root, given, batch, beams, one_write=False),
        "dict, one write": lambda: dict_search(root, given, batch, beams, one_write=True),
    }


def with_decoder(args: argparse.Namespace, trie: Trie) -> dict[str, Callable[[], object]]:
    batch, options = args.batch_size, BeamOptions(beams=args.beams)
    decoder = Decoder(trie.sizes).to(args.device).eval()
    shape = (batch, HEADS, HISTORY, WIDTH // HEADS)
    pair = [torch.randn(shape, device=args.device) for _ in range(2 * LAYERS)]
    shared = list(zip(pair[::2], pair[1::2], strict=True))
    op = level_op(args.device)
    return {
        "trie": lambda: (
            beam_search(decoder.searcher(shared), trie, batch, options, level_op=op).codes
        ),
        "unconstrained": lambda: (
            free_beam_search(
                decoder.searcher(shared), trie.sizes, batch, options, device=args.device
            ).codes
        ),
    }


def measure(
    runs: dict[str, Callable[[], object]], pairs: int, now: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of every run, interleaved."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(pairs):
        for name, run in runs.items():
            before = now()
            run()
            seconds[name].append(now() - before)
    return seconds


def growth(args: argparse.Namespace) -> list[dict[str, float]]:
    """Build tries of growing catalogues: four levels of 256 codes."""
    rows = []
    for items in [int(float(word)) for word in args.growth.split(",") if word]:
        wide = [256, 256, 256, 256]
        codes = draw_codes(items, wide, seed=1)
        spent = []
        for _ in range(3 if items > 10**6 else 7):
            before = time.perf_counter()
            trie = Trie.from_codes(codes, wide)
            spent.append(time.perf_counter() - before)
        middle, low, high = interval(spent)
        rows.append(
            {
                "items": trie.num_items,
                "seconds": middle,
                "low": low,
                "high": high,
                "bytes": trie.num_bytes(),
                "nodes": sum(level.num_nodes for level in trie.levels),
            }
        )
    return rows


def plot(rows: Sequence[dict[str, float]], path: Path) -> bool:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    items = [row["items"] for row in rows]
    for place, (name, label) in enumerate((("seconds", "seconds to build"), ("bytes", "bytes"))):
        axes = figure.add_subplot(1, 2, place + 1)
        values = [row[name] for row in rows]
        axes.loglog(items, values, "o-", label="measured")
        line = [values[-1] * count / items[-1] for count in items]
        axes.loglog(items, line, "--", color="grey", label="proportional")
        axes.set_xlabel("items")
        axes.set_ylabel(label)
        axes.legend()
    figure.savefig(path, dpi=120)
    return True


def report(alone: dict[str, list[float]], decoded: dict[str, list[float]], args, trie) -> dict:
    """Print the tables; the figures as a dict."""
    levels, batch = len(trie.levels), args.batch_size
    figures: dict[str, dict[str, float]] = {}
    best = next(iter(alone))
    print(f"\n{'search alone':<18}{'ms a level':>12}{f'times {best} [95 %]':>32}")
    for name, seconds in alone.items():
        ratio, low, high = interval([s / t for s, t in zip(seconds, alone[best], strict=True)])
        each = median(seconds) / levels * 1e3
        figures[name] = {"ms_per_level": each, "ratio": ratio, "low": low, "high": high}
        print(f"{name:<18}{each:>12.3f}{f'{ratio:.2f} [{low:.2f}, {high:.2f}]':>32}")
    print(f"\n{'with a decoder':<18}{'users/s':>12}{'codes/s':>12}{'ms a batch':>12}")
    for name, seconds in decoded.items():
        middle = median(seconds)
        rate = {"users_per_s": batch / middle, "codes_per_s": batch * args.beams * levels / middle}
        figures[f"decoder, {name}"] = rate
        print(f"{name:<18}{rate['users_per_s']:>12,.0f}{rate['codes_per_s']:>12,.0f}", end="")
        print(f"{middle * 1e3:>12.1f}")
    shares = [t / s for t, s in zip(decoded["trie"], decoded["unconstrained"], strict=True)]
    middle, low, high = interval(shares)
    figures["decoder, trie / unconstrained"] = {"ratio": middle, "low": low, "high": high}
    print(f"{'trie / unconstrained':<24}{middle:.3f} [{low:.3f}, {high:.3f}]")
    return figures


def verdict(alone: dict[str, list[float]]) -> list[tuple[str, str, float, float, float]]:
    """What the search is held to: name, bar, median, low, high."""
    rows = []
    for name in [way for way in alone if way.startswith("trie")]:
        trie = alone[name]
        for other in ("dict trie", "dict, one write"):
            ratio = interval([d / t for d, t in zip(alone[other], trie, strict=True)])
            rows.append((f"{other} / {name}", ">= 20", *ratio))
        ratio = interval([t / u for t, u in zip(trie, alone["unconstrained"], strict=True)])
        rows.append((f"{name} / unconstrained", "<= 1.3", *ratio))
    return rows


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    sizes = [int(word) for word in args.sizes.split(",")]
    codes = quantise(args.items, sizes)
    trie = Trie.from_codes(codes, [*sizes, int(codes[:, -1].max()) + 1]).to(args.device)
    forms = ", ".join(
        f"{level.size} codes, {level.num_nodes:,} nodes, at most {level.branching} children, "
        f"{'CSR' if level.bias is None else 'dense'}"
        for level in trie.levels
    )
    print(f"{trie.num_items:,} items; {forms}; {trie.num_bytes() / 1e6:.1f} MB")
    print(f"batch {args.batch_size}, {args.beams} beams, {args.device}, {args.threads} threads")
    now = clock(args.device, args.threads)
    with torch.no_grad():
        alone = measure(search_alone(args, codes, trie), args.pairs, now)
        decoded = measure(with_decoder(args, trie), args.pairs, now)
    grown = growth(args)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = len(grown) > 1 and plot(grown, folder / "growth.png")
    figures = report(alone, decoded, args, trie)
    if grown:
        print(
            f"\n{'items':>12}{'nodes':>12}{'build, s':>12}{'[95 %]':>20}{'bytes':>16}{'an item':>9}"
        )
    for row in grown:
        around = f"[{row['low']:.3f}, {row['high']:.3f}]"
        each = row["bytes"] / row["items"]
        print(f"{row['items']:>12,}{row['nodes']:>12,}{row['seconds']:>12.3f}", end="")
        print(f"{around:>20}{row['bytes']:>16,}{each:>9.1f}")
    bars = verdict(alone)
    told = {"arguments": vars(args), "figures": figures, "growth": grown, "bars": bars}
    (folder / "bench_decode.json").write_text(json.dumps(told, indent=1))
    print(f"\n{folder / 'bench_decode.json'}" + (f", {folder / 'growth.png'}" if drawn else ""))
    print(f"\n{'':<34}{'bar':>8}{'median [95 %]':>28}")
    for name, bar, middle, low, high in bars:
        print(f"{name:<34}{bar:>8}{f'{middle:.2f} [{low:.2f}, {high:.2f}]':>28}")


if __name__ == "__main__":
    main()
