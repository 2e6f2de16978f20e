# SPDX-License-Identifier: Apache-2.0
"""The KuaiRand table of examples/README.md: frozen configs, several seeds, tested once.

    python tools/prepare_kuairand.py --input FOLDER --output data/kuairand
    python tools/baselines.py priors --data data/kuairand --evaluate test --output OUT/p.parquet
    python tools/baselines.py gbdt   --data data/kuairand --evaluate test --output OUT/g.parquet
    python tools/run_kuairand.py --data data/kuairand --output OUT

Each config is trained on `trainval` (to 5 May) and evaluated on `test` (6-8 May) as it stands in
examples/configs: choices were made on `valid` (5 May) before. Runs that are already there are kept.
Prints one line a run, then mean and standard deviation over seeds; compare prediction files with
`python tools/baselines.py compare --data data/kuairand --split test OUT/*.parquet ...`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = (
    "dlrm_hstu_kuairand",
    "dlrm_hstu_mtgr_kuairand",
    "mmoe_kuairand",
    "ple_kuairand",
    "ultra_hstu_kuairand",
)
TASKS = ("is_click", "long_view", "is_like")
KEYS = "user_id,cand__video_id,cand__time_ms"


def verb(name: str, *flags: str) -> None:
    """Run a verb from the repository root; its failure ends the program."""
    command = [sys.executable, "-m", f"tzgen.{name}", *flags]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise SystemExit(f"`{' '.join(command[1:])}` failed: see the lines above")


def run(model: str, seed: int, data: str, output: Path) -> dict[str, float]:
    """Train, test and predict one config with one seed; its record, kept as result.json."""
    folder = output / f"{model}-{seed}"
    record = folder / "result.json"
    if record.exists():
        return json.loads(record.read_text())
    common = ("--pipeline_config", f"examples/configs/{model}.config", "--model_dir", str(folder))
    test = f"{data}/test/*.parquet"
    started = time.monotonic()
    verb(
        *("train_eval", *common, "--train_input_path", f"{data}/trainval/*.parquet"),
        *("--eval_input_path", test, "--set", f"train_config.seed={seed}"),
    )
    seconds = time.monotonic() - started
    verb(
        *("predict", *common, "--predict_input_path", test, "--reserved_columns", KEYS),
        *("--predict_output_path", str(folder / "predictions")),
    )
    manifests = sorted(folder.glob("model.ckpt-*/manifest.json"), key=lambda p: p.stat().st_mtime)
    manifest = json.loads(manifests[-1].read_text())
    metrics = manifest["metrics"]["metrics"]
    result = {f"auc_{task}": metrics[f"auc_{task}"] for task in TASKS}
    result |= {"seconds": seconds, "step": manifest["step"]}
    record.write_text(json.dumps(result, indent=1))
    return result


def main() -> None:
    """Every model with every seed, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", default="data/kuairand", help="folder of prepared rows")
    parser.add_argument("--output", default="experiments/kuairand", type=Path)
    parser.add_argument("--seeds", default=3, type=int)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    args = parser.parse_args()
    output = args.output.resolve()
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(1, args.seeds + 1):
        for model in args.models:
            result = run(model, seed, args.data, output)
            found.setdefault(model, []).append(result)
            print(model, seed, json.dumps(result), flush=True)
    print(f"\n{'model':<28}" + "".join(f"{task:>20}" for task in TASKS) + f"{'seconds':>10}")
    for model, results in found.items():
        cells = []
        for task in TASKS:
            values = [result[f"auc_{task}"] for result in results]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.4f} +- {spread:.4f}")
        seconds = statistics.median(result["seconds"] for result in results)
        print(f"{model:<28}" + "".join(f"{cell:>20}" for cell in cells) + f"{seconds:>10.0f}")


if __name__ == "__main__":
    main()
