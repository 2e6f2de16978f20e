# SPDX-License-Identifier: Apache-2.0
"""Parquet -> Batch, as a ratio of merely decoding the same columns with pyarrow; one thread.

    python tools/bench_data.py
    python tools/bench_data.py --input_path data/kuairand/train/part-0.parquet --pairs 25

Reads the columns of a config's features from row groups of 10,000 rows, as one loader worker does:
decode, arrange in shuffled batch order, parse (hash, truncate, check, make tensors). Each run is
paired with a decode of the same columns right before it; the ratio is the median over pairs with a
95 % interval, 1.0 being "parsing is free". Without --input_path the rows are synthesised: histories
of up to 50 steps, 5-15 candidates, values of the config's own columns.

Memory is the C library's, as in loader workers, for both sides. Nothing else should run on the
machine; set OMP_WAIT_POLICY=PASSIVE (`make bench` does).
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tzgen.config import load_pipeline
from tzgen.data.batch import Batch, Source
from tzgen.data.gather import RankRows
from tzgen.data.loader import BatchLoader, rows_at_once
from tzgen.data.order import RowOrder
from tzgen.data.plan import SplitByRows, bounds_by_rows, parse_together
from tzgen.data.readers import ParquetDataset
from tzgen.data.readers.base import RowGroups
from tzgen.data.staged import Staged, split_batch
from tzgen.features import Feature, FeatureParser, create_features
from tzgen.features.synthesis import synthesise

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "examples" / "configs" / "dlrm_hstu_kuairand.config"
ROW_GROUP_ROWS = 10_000
BARE = "pyarrow decoding alone"
MAX_HISTORY, CANDIDATES = 50, (5, 15)


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--pipeline_config", default=str(CONFIG))
    flags.add_argument("--input_path", help="Parquet rows of that config; default: synthesised")
    flags.add_argument("--rows", type=int, default=80_000, help="rows of a run")
    flags.add_argument("--batch_size", type=int, help="default: the config's")
    flags.add_argument("--pairs", type=int, default=15, help="interleaved runs of each kind")
    return flags


def lengthen(rows: pa.Table, rng: np.random.Generator) -> pa.Table:
    """The same columns with KuaiRand's lengths: list columns are refilled from their own values.

    Columns of one sequence keep equal lengths: those that shared their lengths before do after.
    """
    lengths: dict[bytes, np.ndarray] = {}
    columns = []
    for column in rows.combine_chunks().columns:
        cells = column.combine_chunks()
        if not pa.types.is_list(cells.type):
            columns.append(cells)
            continue
        old = cells.value_lengths().to_numpy(zero_copy_only=False)
        key = old.tobytes()
        if key not in lengths:
            low, high = CANDIDATES if old.min() > 0 else (0, MAX_HISTORY)
            lengths[key] = rng.integers(low, high + 1, len(cells))
        offsets = np.concatenate([[0], np.cumsum(lengths[key])]).astype(np.int32)
        values = cells.flatten()
        picked = values.take(pa.array(rng.integers(0, len(values), int(offsets[-1]))))
        columns.append(pa.ListArray.from_arrays(pa.array(offsets), picked))
    return pa.table(columns, names=rows.column_names)


def write_rows(args: argparse.Namespace, feature_parser: FeatureParser, path: Path) -> str:
    """About --rows rows in row groups of 10,000 at `path`; what they are."""
    columns = feature_parser.input_columns
    if args.input_path:
        rows = pq.read_table(args.input_path, columns=columns)
        what = f"rows of {args.input_path}"
    else:
        rng = np.random.default_rng(0)
        config = load_pipeline(args.pipeline_config)
        rows = lengthen(synthesise(config, create_features(config), 20_000), rng).select(columns)
        what = "synthesised rows"
    copies = -(-args.rows // len(rows))
    rows = pa.concat_tables([rows] * copies).slice(0, args.rows)
    pq.write_table(rows, path, row_group_size=ROW_GROUP_ROWS)
    return what


def decode(path: Path, columns: Sequence[str]) -> Callable[[], None]:
    """What everything is measured against: pyarrow alone, one thread."""

    def run() -> None:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                file.read_row_group(group, columns=list(columns), use_threads=False)

    return run


def load(
    reader: ParquetDataset,
    parse: Callable[[pa.RecordBatch, Source], Batch],
    batch_size: int,
    shuffle: bool,
) -> Callable[[], None]:
    loader = BatchLoader(reader, parse=Staged(parse), batch_size=batch_size, shuffle=shuffle)

    def run() -> None:
        rows = sum(batch.num_rows for batch in loader.epoch(None, 0))
        if rows != reader.num_rows:
            raise AssertionError(f"{rows} rows of {reader.num_rows}")

    return run


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of this thread: what other processes do to the machine counts less."""
    started = time.thread_time()
    run()
    return time.thread_time() - started


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median by order statistics (binomial, normal approximation)."""
    ordered, n = sorted(values), len(values)
    reach = 0.98 * n**0.5
    return ordered[max(0, int(n / 2 - reach))], ordered[min(n - 1, int(np.ceil(n / 2 + reach)) - 1)]


def kind_of(feature: Feature) -> str:
    what = "ids" if feature.is_sparse else "numbers"
    hashed = type(feature.buckets).__name__ if feature.buckets else "as they are"
    return f"{'sequence' if feature.is_sequence else 'row'} {what} ({hashed})"


def drop_all(
    parse_all: Callable[[FeatureParser], Iterator[Batch]], feature_parser: FeatureParser
) -> None:
    """Parse and let go, as the loader does: batches that are kept would need fresh memory."""
    deque(parse_all(feature_parser), 0)


def breakdown(
    config: object, features: Sequence[Feature], reader: ParquetDataset, batch_size: int
) -> dict[str, float]:
    """Seconds for all rows: arranging without decoding, then the features of each kind alone."""
    order = RowOrder(RowGroups(reader.files).rows, key="bench", seed=0, epoch=0, shuffle_window=8)
    bounds = bounds_by_rows(0, reader.num_rows, batch_size)
    decoded = DecodedRows(reader)
    together = parse_together(bounds, order.window_starts, rows_at_once(reader))
    rows = RankRows(decoded, order, bounds, together, rank=0, split=SplitByRows(1))
    parts = {"arrange in batch order": median(seconds(lambda: deque(rows, 0)) for _ in range(5))}
    batches = list(rows)

    def parse_all(feature_parser: FeatureParser) -> Iterator[Batch]:
        return (feature_parser.parse(item.rows, item.source) for item in batches)

    def timed(run: Callable[[], object]) -> float:
        return median(seconds(run) for _ in range(5))

    whole = FeatureParser(config, features)  # type: ignore[arg-type]
    parts["parse"] = timed(partial(drop_all, parse_all, whole))
    by_kind: dict[str, list[Feature]] = defaultdict(list)
    for feature in features:
        if not feature.stub:
            by_kind[kind_of(feature)].append(feature)
    for kind, some in sorted(by_kind.items()):
        alone = FeatureParser(config, some, labels=False)  # type: ignore[arg-type]
        parts[f"  of that: {len(some)} {kind}"] = timed(partial(drop_all, parse_all, alone))
    parsed = list(parse_all(whole))
    parts["cut into batches"] = timed(
        lambda: [
            split_batch(batch, item.sizes) for batch, item in zip(parsed, batches, strict=True)
        ]
    )
    return parts


class DecodedRows:
    """A reader whose row groups are decoded already."""

    use_threads, fork_safe, by_column = False, True, True

    def __init__(self, reader: ParquetDataset) -> None:
        self.files, self.schema, self.num_rows = reader.files, reader.schema, reader.num_rows
        self.fingerprint, self.row_bytes = reader.fingerprint, reader.row_bytes
        groups = range(len(reader.files[0].group_rows))
        self._decoded = [reader.read_rows(0, group) for group in groups]

    def megabytes(self) -> list[float]:
        return [rows.nbytes / 1e6 for rows in self._decoded]

    def read_rows(
        self, file: int, row_group: int, columns: Sequence[str] | None = None
    ) -> pa.RecordBatch:
        return self._decoded[row_group]

    def read_groups(
        self, file: int, row_groups: Sequence[int], columns: Sequence[str]
    ) -> pa.RecordBatch:
        parts = [self._decoded[index].select(columns) for index in row_groups]
        return parts[0] if len(parts) == 1 else pa.concat_batches(parts)


def report(
    runs: dict[str, Callable[[], None]], pairs: int, num_rows: int, megabytes: float
) -> float:
    """Interleave the runs with decoding, print a line for each; seconds of decoding."""
    times: dict[str, list[float]] = defaultdict(list)
    ratios: dict[str, list[float]] = defaultdict(list)
    for run in runs.values():
        run()
    for _ in range(pairs):
        for name, run in runs.items():
            base = seconds(runs[BARE])
            times[name].append(base if name == BARE else seconds(run))
            ratios[name].append(base / times[name][-1])
    print(f"{'':<34}{'rows/s':>10}{'MB/s':>8}{'us/row':>8}   ratio [95 %]")
    for name in runs:
        second = median(times[name])
        low, high = interval(ratios[name])
        print(
            f"{name:<34}{num_rows / second:>10,.0f}{megabytes / second:>8.0f}"
            f"{second / num_rows * 1e6:>8.2f}   {median(ratios[name]):.3f} [{low:.3f}, {high:.3f}]"
        )
    return median(times[BARE])


def main() -> None:
    args = parser().parse_args()
    pa.set_cpu_count(1)
    torch.set_num_threads(1)
    pa.set_memory_pool(pa.system_memory_pool())  # this and the next as loader workers do
    gc.freeze()
    config = load_pipeline(args.pipeline_config)
    features = create_features(config)
    feature_parser = FeatureParser(config, features)
    batch_size = args.batch_size or config.data_config.batch_size
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        what = write_rows(args, feature_parser, path)
        reader = ParquetDataset(str(path), columns=feature_parser.input_columns)
        megabytes = sum(DecodedRows(reader).megabytes())
        print(
            f"{reader.num_rows:,} {what}, {len(reader.schema)} columns, row groups of "
            f"{ROW_GROUP_ROWS:,}, {megabytes:.0f} MB decoded, {path.stat().st_size / 1e6:.0f} MB "
            f"in the file; batches of {batch_size}; one thread; {args.pairs} pairs\n"
        )
        runs = {
            BARE: decode(path, feature_parser.input_columns),
            "Parquet -> Batch, shuffled": load(reader, feature_parser.parse, batch_size, True),
            "Parquet -> Batch, in file order": load(
                reader, feature_parser.parse, batch_size, False
            ),
        }
        base = report(runs, args.pairs, reader.num_rows, megabytes)
        print(f"\n{'where it goes':<58}{'us/row':>8}{'of decoding':>13}")
        parts = {"decode": base, **breakdown(config, features, reader, batch_size)}
        for name, second in parts.items():
            print(f"{name:<58}{second / reader.num_rows * 1e6:>8.2f}{second / base:>12.0%}")


if __name__ == "__main__":
    main()
