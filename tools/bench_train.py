# SPDX-License-Identifier: Apache-2.0
"""One command from start to final evaluation: where the seconds go.

    python tools/bench_train.py
    python tools/bench_train.py --repeats 5 --set data_config.num_workers=0

2,048 rows with histories of 50-200 steps and 8 candidates, then 512 rows to evaluate; DlrmHSTU with
D 128, two STU layers, four heads; batch 32, one epoch; row-wise Adagrad and Adam; one process with
two threads and one loader process. Data and config are made in a temporary folder. Each repeat is a
process of its own, timed from before it starts until it has ended. Labels are random: the metrics
say nothing. Nothing else should run on the machine; where something does, believe the processor
seconds, which are of the training process alone (the loader's are in the total).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HISTORY, CANDIDATES, VIDEOS, USERS = (50, 200), 8, 50_000, 2_000
TIMES = "BENCH_TRAIN_TIMES "
CPU = "processor: "

CONFIG = """
train_config {
  sparse_optimizer { rowwise_adagrad_optimizer { lr: 0.01 } constant_learning_rate {} }
  dense_optimizer { adam_optimizer { lr: 0.001 } constant_learning_rate {} }
  num_epochs: 1 save_checkpoints_epochs: 1 log_step_count_steps: 16
}
data_config {
  batch_size: 32 dataset_type: ParquetDataset fg_mode: FG_DAG num_workers: 1
  label_fields: ["cand__action", "cand__seconds"]
}
FEATURES
feature_configs {
  sequence_feature {
    sequence_name: "uih" sequence_length: 200
    features { id_feature { feature_name: "video" expression: "item:video" embedding_name: "video"
      embedding_dim: 64 num_buckets: 50000 } }
    features { id_feature { feature_name: "author" expression: "item:author"
      embedding_name: "author" embedding_dim: 64 hash_bucket_size: 20000 } }
    features { raw_feature { feature_name: "time" expression: "user:time" } }
    features { raw_feature { feature_name: "action" expression: "user:action" } }
    features { raw_feature { feature_name: "seconds" expression: "user:seconds" } }
  }
}
feature_configs {
  sequence_feature {
    sequence_name: "cand" sequence_length: 8
    features { id_feature { feature_name: "video" expression: "item:video" embedding_name: "video"
      embedding_dim: 64 num_buckets: 50000 } }
    features { id_feature { feature_name: "author" expression: "item:author"
      embedding_name: "author" embedding_dim: 64 hash_bucket_size: 20000 } }
    features { raw_feature { feature_name: "time" expression: "user:time" } }
  }
}
model_config {
  feature_groups { group_name: "contextual" group_type: DEEP
    feature_names: ["user", "active", "city", "age"] }
  feature_groups { group_name: "uih" group_type: JAGGED_SEQUENCE
    feature_names: ["uih__video", "uih__author"] }
  feature_groups { group_name: "candidate" group_type: JAGGED_SEQUENCE
    feature_names: ["cand__video", "cand__author"] }
  feature_groups { group_name: "uih_action" group_type: JAGGED_SEQUENCE
    feature_names: "uih__action" }
  feature_groups { group_name: "uih_watchtime" group_type: JAGGED_SEQUENCE
    feature_names: "uih__seconds" }
  feature_groups { group_name: "uih_timestamp" group_type: JAGGED_SEQUENCE
    feature_names: "uih__time" }
  feature_groups { group_name: "candidate_timestamp" group_type: JAGGED_SEQUENCE
    feature_names: "cand__time" }
  dlrm_hstu {
    hstu {
      stu { embedding_dim: 128 num_heads: 4 hidden_dim: 32 attention_dim: 32
        output_dropout_ratio: 0.1 }
      input_dropout_ratio: 0.1 attn_num_layers: 2
      positional_encoder { num_position_buckets: 512 num_time_buckets: 2048
        use_time_encoding: true }
      input_preprocessor { contextual_preprocessor {
        action_encoder { simple_action_encoder { action_embedding_dim: 8
          action_weights: [1, 2, 4] watchtime_to_action_thresholds: [10, 60]
          watchtime_to_action_weights: [8, 16] } }
        action_mlp { simple_mlp { hidden_dim: 128 } }
        content_encoder { slice_content_encoder {} }
        content_mlp { simple_mlp { hidden_dim: 128 } }
      } }
      output_postprocessor { layernorm_postprocessor {} }
    }
    fusion_mtl_tower {
      mlp { hidden_units: [128] activation: "nn.SiLU" use_ln: true }
      task_configs { task_name: "is_click" label_name: "cand__action" task_bitmask: 1
        losses { binary_cross_entropy {} } metrics { auc {} } }
      task_configs { task_name: "is_like" label_name: "cand__action" task_bitmask: 2
        losses { binary_cross_entropy {} } metrics { auc {} } }
      task_configs { task_name: "seconds" label_name: "cand__seconds"
        losses { l2_loss {} } metrics { mean_squared_error {} } }
    }
    max_seq_len: 220 item_embedding_hidden_dim: 128
  }
}
"""
PROFILE = {"user": 2000, "active": 10, "city": 400, "age": 20}


def config_text() -> str:
    features = "\n".join(
        f'feature_configs {{ id_feature {{ feature_name: "{name}" expression: "user:{name}" '
        f"embedding_dim: 64 num_buckets: {size} }} }}"
        for name, size in PROFILE.items()
    )
    return CONFIG.replace("FEATURES", features)


def write_rows(path: Path, rows: int, seed: int) -> int:
    """Random rows in groups of 512; the sequence tokens they hold."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {n: rng.integers(0, size, rows) for n, size in PROFILE.items()}
    lengths = {"uih": rng.integers(*HISTORY, rows, endpoint=True), "cand": [CANDIDATES] * rows}
    for name, counts in lengths.items():
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        total = int(offsets[-1])
        start = np.repeat(1_700_000_000 + rng.integers(0, 10**6, rows), counts)
        within = np.arange(total) - np.repeat(offsets[:-1], counts)
        values = {
            "video": rng.integers(0, VIDEOS, total),
            "author": rng.integers(0, VIDEOS // 5, total),
            "time": start + within * 60 + (10**6 if name == "cand" else 0),
            "action": rng.integers(0, 8, total),
            "seconds": rng.uniform(0, 120, total).astype(np.float32) / 120,
        }
        for column, flat in values.items():
            cells = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
            columns[f"{name}__{column}"] = cells
    pq.write_table(pa.table(columns), path, row_group_size=512)
    return sum(int(np.sum(counts)) for counts in lengths.values())


def timed(
    seconds: dict[str, list[float]], name: str, call: Callable[..., Any]
) -> Callable[..., Any]:
    """`call`, noting when each call began and ended, by the clock and by the processor."""

    def run(*args: Any, **named: Any) -> Any:
        began, busy = time.time(), time.process_time()
        try:
            return call(*args, **named)
        finally:
            seconds.setdefault(name, []).extend((began, time.time()))
            seconds.setdefault(CPU + name, []).extend((busy, time.process_time()))

    return run


def child(argv: Sequence[str]) -> None:
    """The verb in this process, its parts timed; the times on standard output."""
    from tzgen import train_eval

    seconds: dict[str, list[float]] = {}
    from tzgen.train import job, trainer

    seconds["imported"], seconds[CPU + "imported"] = [time.time()], [time.process_time()]
    job.build_pipeline = timed(seconds, "pipeline", job.build_pipeline)  # type: ignore[assignment]
    loop = trainer.Trainer
    for part in ("__init__", "fit", "_step", "_evaluate", "_save"):
        setattr(loop, part, timed(seconds, part, getattr(loop, part)))
    job.plot_training = timed(seconds, "plot", job.plot_training)  # type: ignore[assignment]
    train_eval.main(argv)
    seconds["done"], seconds[CPU + "done"] = [time.time()], [time.process_time()]
    print(TIMES + json.dumps(seconds), flush=True)


def measure(folder: Path, overrides: Sequence[str], repeat: int) -> dict[str, tuple[float, float]]:
    """(seconds, processor seconds) of the parts of one run, and steps a second of each."""
    command = [sys.executable, __file__, "--child", "--pipeline_config", folder / "bench.config"]
    command += ["--train_input_path", folder / "train.parquet"]
    command += ["--eval_input_path", folder / "eval.parquet"]
    command += ["--model_dir", folder / f"model-{repeat}"]
    command += [word for override in overrides for word in ("--set", override)]
    environment = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}
    began, before = time.time(), os.times()
    done = subprocess.run(
        [str(word) for word in command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    total, after = time.time() - began, os.times()
    if done.returncode:
        raise SystemExit(f"the run ended with status {done.returncode}:\n{done.stderr}")
    line = next(line for line in done.stdout.splitlines() if line.startswith(TIMES))
    times = json.loads(line.removeprefix(TIMES))
    busy = after.children_user + after.children_system
    busy -= before.children_user + before.children_system
    wall = parts_of(times, "", began, total)
    cpu = parts_of(times, CPU, 0.0, busy)
    return {name: (wall[name], cpu[name]) for name in wall}


def parts_of(
    times: dict[str, list[float]], kind: str, began: float, total: float
) -> dict[str, float]:
    """Where `total` seconds went, by the stamps of one kind ("" or CPU); and steps a second."""
    steps = spans(times[kind + "_step"])
    saving, evaluating = (sum(spans(times[kind + part])) for part in ("_save", "_evaluate"))
    nested = nested_seconds(times[kind + "_save"], times[kind + "_evaluate"])
    parts = {
        "start and import": times[kind + "imported"][0] - began,
        "read config, build model": sum(spans(times[kind + "pipeline"])),
        "place tables, optimizers": sum(spans(times[kind + "__init__"])),
        "first step": steps[0],
        f"the other {len(steps) - 2} steps": sum(steps[1:-1]),
        "evaluation": evaluating - nested,
        "checkpoints": saving,
        "curves.png": sum(spans(times[kind + "plot"])),
        "loader process, process exit": began + total - times[kind + "done"][0],
    }
    parts["everything else"] = total - sum(parts.values())

    # the last call of _step only finds that the epoch is over
    return parts | {"total": total, "it/s": (len(steps) - 2) / sum(steps[1:-1])}


def spans(stamps: Sequence[float]) -> list[float]:
    """[begin, end, begin, end, ...] -> durations."""
    return [end - begin for begin, end in zip(stamps[::2], stamps[1::2], strict=True)]


def nested_seconds(inner: Sequence[float], outer: Sequence[float]) -> float:
    """Seconds of `inner` calls that lie inside `outer` ones."""
    inside = 0.0
    for begin, end in zip(inner[::2], inner[1::2], strict=True):
        for low, high in zip(outer[::2], outer[1::2], strict=True):
            inside += end - begin if low <= begin and end <= high else 0.0
    return inside


def report(runs: Sequence[dict[str, tuple[float, float]]], tokens: int, rows: int) -> None:
    """A line for each part: median, smallest, largest; then the median of processor seconds."""
    print(f"{'seconds':<34}{'median':>9}{'min':>9}{'max':>9}{'share':>8}{'processor':>12}")
    whole = median(run["total"][0] for run in runs)
    for name in runs[0]:
        if name == "it/s":
            continue
        values = [run[name][0] for run in runs]
        print(
            f"{name:<34}{median(values):>9.2f}{min(values):>9.2f}{max(values):>9.2f}"
            f"{median(values) / whole:>8.0%}{median(run[name][1] for run in runs):>12.2f}"
        )
    speed = [run["it/s"][0] for run in runs]
    middle = median(speed)
    print(f"\nsteady: {middle:.2f} it/s (from {min(speed):.2f} to {max(speed):.2f}), ", end="")
    print(f"{middle * 32:,.0f} samples/s, {middle * 32 * tokens / rows:,.0f} tokens/s; ", end="")
    print(f"a step takes {1 / median(run['it/s'][1] for run in runs):.3f} processor seconds")


def main() -> None:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--rows", type=int, default=2048)
    flags.add_argument("--eval_rows", type=int, default=512)
    flags.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bench.config").write_text(config_text())
        tokens = write_rows(folder / "train.parquet", args.rows, seed=1)
        write_rows(folder / "eval.parquet", args.eval_rows, seed=2)
        print(f"{args.rows:,} rows with {tokens:,} tokens, {args.eval_rows} rows to evaluate")
        runs = [measure(folder, args.set, repeat) for repeat in range(args.repeats)]
    report(runs, tokens, args.rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
