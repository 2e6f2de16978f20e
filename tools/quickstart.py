# SPDX-License-Identifier: Apache-2.0
"""From nothing to predictions: MovieLens-100K, DlrmHSTU with two tasks, in minutes on a laptop.

Runs the commands that a user would type, one after the other, and says what each left where. A step
whose result is already there is quick the second time: data is kept, training resumes at its end.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "examples/configs/dlrm_hstu_ml100k.config"
DATA = "data/ml100k"
MODEL_DIR = "experiments/dlrm_hstu_ml100k"
RESULT = "test_result.json"


def run(title: str, *command: str) -> float:
    """Run a command in the repository root, showing it; its seconds. A failure ends the program."""
    shown = shlex.join(("python", *command))
    print(f"\n\033[1m{title}\033[0m\n$ {shown}", flush=True)
    started = time.monotonic()
    status = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    if status != 0:
        raise SystemExit(
            f"quickstart stopped: `{shown}` ended with status {status}; see the lines above"
        )
    return time.monotonic() - started


def report(seconds: dict[str, float]) -> str:
    """Metrics beside the baselines, where everything lies, what to type next."""
    result = json.loads((ROOT / MODEL_DIR / RESULT).read_text())
    priors = json.loads((ROOT / MODEL_DIR / "baselines.json").read_text())["metrics"]
    metrics, intervals = result["metrics"], result["intervals"]
    lines = [
        "",
        f"{'test days, never trained on':<28}{'DlrmHSTU':>10}{'95 % of users':>20}{'priors':>10}",
    ]
    lines.append("-" * len(lines[-1]))
    for name in sorted(priors):
        low, high = intervals.get(name, (float("nan"), float("nan")))
        spread = f"{low:.3f} to {high:.3f}"
        lines.append(f"{name:<28}{metrics[name]:>10.4f}{spread:>20}{priors[name]:>10.4f}")
    lines += [
        "",
        "priors: smoothed averages of the movie and of the user, from earlier ratings alone",
    ]
    lines += [
        "",
        "seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()),
        "",
    ]
    places = {
        "data": DATA,
        "checkpoints, logs, TensorBoard": MODEL_DIR,
        "exported package": f"{MODEL_DIR}/export",
        "predictions": f"{MODEL_DIR}/predictions",
    }
    lines += [f"{name:<32}{place}" for name, place in places.items()]
    lines += [
        "",
        "next:",
        f"  .venv/bin/tensorboard --logdir {MODEL_DIR}",
        f"  .venv/bin/python -m tzgen.check --pipeline_config {CONFIG}",
        f"  .venv/bin/python -m tzgen.train_eval --pipeline_config {CONFIG} "
        "--model_dir experiments/mine --set model_config.dlrm_hstu.hstu.attn_num_layers=3",
        "  docs/quickstart.md tells what just happened",
    ]
    return "\n".join(lines)


def main() -> None:
    """Prepare, train, evaluate, export, predict, report."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--input", help="folder with ml-100k instead of obtaining it from the package index"
    )
    args = parser.parse_args()
    config = ("--pipeline_config", CONFIG)
    export, predictions = f"{MODEL_DIR}/export", f"{MODEL_DIR}/predictions"
    seconds: dict[str, float] = {}
    if not (ROOT / DATA / "manifest.json").exists():
        source = ("--input", args.input) if args.input else ()
        seconds["data"] = run(
            "1/6 MovieLens-100K as Parquet rows",
            "tools/prepare_movielens.py",
            "--output",
            DATA,
            *source,
        )
    seconds["train"] = run(
        "2/6 train, watching the validation days", "-m", "tzgen.train_eval", *config
    )
    seconds["test"] = run(
        "3/6 evaluate once on the test days",
        *("-m", "tzgen.eval", *config, "--eval_input_path", f"{DATA}/test/*.parquet"),
        *("--eval_result_filename", RESULT),
    )
    seconds["priors"] = run(
        "4/6 what has to be beaten, on the same rows",
        *("tools/baselines.py", "priors", "--data", DATA, "--evaluate", "test"),
        *("--report", f"{MODEL_DIR}/baselines.json"),
    )
    seconds["export"] = run(
        "5/6 export", "-m", "tzgen.export", *config, "--export_dir", export, "--overwrite"
    )
    seconds["predict"] = run(
        "6/6 predict from the exported package",
        *("-m", "tzgen.predict", "--export_dir", export, "--overwrite"),
        *("--predict_input_path", f"{DATA}/test/*.parquet", "--predict_output_path", predictions),
        *("--reserved_columns", "user_id,cand__movie_id"),
    )
    print(report(seconds))


if __name__ == "__main__":
    main()
