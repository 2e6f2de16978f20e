# SPDX-License-Identifier: Apache-2.0
"""What a retrieval model or a generator has to beat on leave-last-out rows, in seconds.

    python tools/sequence_baselines.py --data data/beauty --evaluate test
    python tools/sequence_baselines.py --data data/beauty --evaluate valid --report baselines.json

popularity: items by how often they stand in the training part.

itemknn: items that follow each other. Pairs of a training sequence at a distance d <= 3 count 1 / d
for the later item after the earlier one and 0.5 / d for the earlier after the later, divided by
sqrt(count * count) of the two items. A user's score of an item sums over the last five items of
the history with weights 1 / (1 + age). Items without a score follow by popularity.

Both rank the whole catalogue without the items of the user's history; ties by item id. Metrics:
recall and NDCG of the one target at 5, 10 and 20 (recall is hit rate here), and recall@10 of the
targets that the training part holds at most five times. 95 % intervals resample users. No choice is
made on any split: the constants above are fixed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from prepared import Progress, read_manifest, run
from scipy.sparse import csr_array
from sequence_rows import SPLITS

from tzgen.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NEAR, LAST, BACKWARD = 3, 5, 0.5
CUTS = (5, 10, 20)
RARE = 5
BATCH = 2000


class Sequences:
    """Items as places 0 .. I - 1 of the catalogue; histories packed, offsets [B + 1]."""

    def __init__(self, data: Path, split: str) -> None:
        read_manifest(data)
        catalogue = pl.read_parquet(data / "items" / "*.parquet", columns=["item_id"])
        self.item_id: Ints = np.sort(catalogue["item_id"].to_numpy())
        self.train = self._packed(data, "train", with_target=True)
        self.history = self._packed(data, split, with_target=False)
        rows = pl.read_parquet(data / split / "*.parquet", columns=["target_item_id"])
        self.target = self._place(rows["target_item_id"].to_numpy())

    def _packed(self, data: Path, split: str, *, with_target: bool) -> tuple[Ints, Ints]:
        frame = pl.read_parquet(data / split / "*.parquet")
        lists = frame["uih__item_id"]
        if with_target:
            lists = frame.select(pl.concat_list("uih__item_id", "target_item_id")).to_series()
        offsets = np.concatenate([[0], np.cumsum(lists.list.len().to_numpy(), dtype=np.int64)])
        return self._place(lists.explode().drop_nulls().to_numpy()), offsets

    def _place(self, ids: Ints) -> Ints:
        return np.searchsorted(self.item_id, ids)

    @property
    def counts(self) -> Ints:
        """How often each item stands in the training part, [I]."""
        return np.bincount(self.train[0], minlength=len(self.item_id))


def neighbours(train: tuple[Ints, Ints], counts: Ints) -> csr_array:
    """ItemKNN's [I, I]: row = the item seen, column = the item scored."""
    items, offsets = train
    rows, columns, weights = [], [], []
    last = np.repeat(offsets[1:], np.diff(offsets))
    for distance in range(1, NEAR + 1):
        at = np.flatnonzero(np.arange(len(items)) + distance < last)
        earlier, later = items[at], items[at + distance]
        rows += [earlier, later]
        columns += [later, earlier]
        weights += [np.full(len(at), w / distance) for w in (1.0, BACKWARD)]
    size = len(counts)
    parts = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    matrix = csr_array(parts, shape=(size, size))
    matrix.sum_duplicates()
    scale = 1.0 / np.sqrt(np.maximum(counts, 1))
    coo = matrix.tocoo()
    return csr_array((coo.data * scale[coo.row] * scale[coo.col], (coo.row, coo.col)), coo.shape)


def recent(history: tuple[Ints, Ints], size: int, rows: slice) -> csr_array:
    """The last items of each history with their weights, [rows, I]."""
    items, offsets = history
    start, stop = offsets[rows.start : rows.stop], offsets[rows.start + 1 : rows.stop + 1]
    at, row, weight = [], [], []
    for age in range(LAST):
        there = np.flatnonzero(stop - 1 - age >= start)
        at.append(items[stop[there] - 1 - age])
        row.append(there)
        weight.append(np.full(len(there), 1.0 / (1 + age)))
    parts = (np.concatenate(weight), (np.concatenate(row), np.concatenate(at)))
    return csr_array(parts, shape=(len(start), size))


def scores(data: Sequences, method: str) -> Iterator[tuple[slice, Floats]]:
    """Rows and their scores of every item, [rows, I]; higher is better, seen items -inf."""
    size, counts = len(data.item_id), data.counts
    fill = counts / (counts.max() + 1.0)  # below 1
    near = neighbours(data.train, counts) if method == "itemknn" else None
    items, offsets = data.history
    for start in range(0, len(data.target), BATCH):
        rows = slice(start, min(start + BATCH, len(data.target)))
        found: Floats = np.tile(fill, (rows.stop - rows.start, 1))
        if near is not None:
            known = (recent(data.history, size, rows) @ near).toarray()
            found = np.where(known > 0, 1.0 + known, found)
        seen = slice(offsets[rows.start], offsets[rows.stop])
        row = np.repeat(np.arange(len(found)), np.diff(offsets[rows.start : rows.stop + 1]))
        found[row, items[seen]] = -np.inf
        yield rows, found


def target_ranks(data: Sequences, method: str) -> Ints:
    """Place of each row's target in the ranking, 1 is best."""
    ranks = np.empty(len(data.target), dtype=np.int64)
    order = np.arange(len(data.item_id))
    for rows, found in scores(data, method):
        target = data.target[rows]
        own = found[np.arange(len(target)), target][:, None]
        better = (found > own) | ((found == own) & (order < target[:, None]))
        repeated = ~np.isfinite(own[:, 0])  # the target stands in the history: it is never ranked
        ranks[rows] = np.where(repeated, len(order) + 1, better.sum(axis=1) + 1)
    return ranks


def gains(ranks: Ints) -> dict[str, Floats]:
    """Every metric of every row."""
    found: dict[str, Floats] = {}
    for cut in CUTS:
        hit = ranks <= cut
        found[f"recall@{cut}"] = hit.astype(np.float64)
        found[f"ndcg@{cut}"] = np.where(hit, 1.0 / np.log2(ranks + 1.0), 0.0)
    return found


def summary(ranks: Ints, target_counts: Ints, *, samples: int, seed: int) -> dict[str, Any]:
    """Means with 95 % intervals over users, and recall of rare targets."""
    rng = np.random.default_rng(seed)
    picks = [rng.integers(0, len(ranks), len(ranks)) for _ in range(samples)]
    report: dict[str, Any] = {}
    for name, values in gains(ranks).items():
        low, high = np.quantile([values[pick].mean() for pick in picks], [0.025, 0.975])
        report[name] = {
            "mean": float(values.mean()),
            "interval": [round(float(low), 5), round(float(high), 5)],
        }
    rare = target_counts <= RARE
    report["rare"] = {
        "targets": int(rare.sum()),
        "recall@10": float((ranks[rare] <= 10).mean()) if rare.any() else None,
    }
    return report


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--data", type=Path, required=True, help="folder of prepared sequences")
    flags.add_argument("--evaluate", choices=SPLITS[1:], default="valid")
    flags.add_argument("--report", type=Path, help="metrics as JSON")
    flags.add_argument("--samples", type=int, default=200, help="bootstrap samples")
    flags.add_argument("--seed", type=int, default=42)
    return flags


def main(argv: Sequence[str] | None) -> None:
    args = parser().parse_args(argv)
    if not (args.data / args.evaluate).is_dir():
        raise UserError(
            f"--data {args.data} has no folder {args.evaluate}; expected what "
            "tools/prepare_amazon.py or tools/prepare_movielens_sequences.py writes"
        )
    progress = Progress()
    data = Sequences(args.data, args.evaluate)
    told: dict[str, Any] = {"split": args.evaluate, "methods": {}}
    for method in ("popularity", "itemknn"):
        found = summary(
            target_ranks(data, method),
            data.counts[data.target],
            samples=args.samples,
            seed=args.seed,
        )
        told["methods"][method] = found
        means = "  ".join(f"{n} {v['mean']:.4f}" for n, v in found.items() if n != "rare")
        progress.say(f"{method} {args.evaluate}: {means}")
    if args.report is not None:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        partial = args.report.with_name(f"{args.report.name}.partial")
        partial.write_text(json.dumps(told, indent=2) + "\n")
        partial.rename(args.report)


if __name__ == "__main__":
    run(main)
