# SPDX-License-Identifier: Apache-2.0
"""What tzgen makes of TorchEasyRec's own configs: every *.config below a folder, e.g. a checkout.

    python tools/check_torcheasyrec.py ~/TorchEasyRec            # parse and validate: seconds
    python tools/check_torcheasyrec.py ~/TorchEasyRec --train    # and train two steps: minutes

Nothing of a text is changed but its paths and dataset_type (MaxCompute tables become Parquet). A
text of a supported model must train on rows that are synthesised from its own features; any other
must parse and be refused once, by name. Ends with status 1 if one text does neither.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tzgen import build  # noqa: E402
from tzgen.config import load_pipeline  # noqa: E402
from tzgen.config.support import MODELS, unsupported  # noqa: E402
from tzgen.errors import ConfigError, Problem, UserError  # noqa: E402

STEPS = 2
EVAL_ROWS = 32
# What may be changed in a text, beside its paths.
READER = "data_config.dataset_type=ParquetDataset"
# A text of a supported model may be refused for one option, except these, which must train.
MUST_TRAIN = re.compile(r"(dlrm_hstu|(dlrm_)?ultra_hstu|mmoe|ple)(_[a-z0-9_]*)?\.config")
CHECKPOINT = re.compile(r"model\.ckpt-(\d+)$")
BYTES = {"FP16": 2, "BF16": 2}


@dataclass(frozen=True)
class Outcome:
    """One text. `status`: trained, valid, refused, skipped; or a surprise: broken, failed, loud."""

    text: str
    model: str
    status: str
    detail: str
    seconds: float

    @property
    def surprise(self) -> bool:
        return self.status in ("broken", "failed", "loud")


def examine(path: Path, name: str, *, train: bool, timeout: float) -> Outcome:
    """Load, validate and, where asked for and possible, train one text."""
    started = time.monotonic()
    model = "?"

    def outcome(status: str, detail: str = "") -> Outcome:
        return Outcome(name, model, status, detail, time.monotonic() - started)

    try:
        config = load_pipeline(path, [READER])
    except ConfigError as error:
        return outcome("broken", _counted(error.problems))
    model = config.model_config.WhichOneof("model") or "none"
    with tempfile.TemporaryDirectory(prefix="check_torcheasyrec_") as folder:
        _redirect(config, Path(folder))
        problems = build.validate(config)
        if problems:
            return outcome(*_judge(config, problems, path.name))
        if not train:
            return outcome("valid")
        if reason := _too_large(config):
            return outcome("skipped", reason)
        try:
            _write_rows(config, Path(folder))
        except UserError as error:
            return outcome("failed", f"no rows could be synthesised: {error}")
        return outcome(*_train(path, Path(folder), timeout))


def _redirect(config: Any, folder: Path) -> None:
    config.train_input_path = str(folder / "train.parquet")
    config.eval_input_path = str(folder / "eval.parquet")
    config.model_dir = str(folder / "model")


def _judge(config: Any, problems: Sequence[Problem], file: str) -> tuple[str, str]:
    """Whether a refusal is the one that a user should get."""
    shown = _counted(problems)
    if len(problems) > 1:
        return "loud", shown
    model = config.model_config.WhichOneof("model")
    if model in MODELS and MUST_TRAIN.fullmatch(file):
        return "failed", shown
    named = {problem.path for problem in unsupported(config)}
    if problems[0].path not in named:
        return "failed", shown
    return "refused", problems[0].path


def _counted(problems: Sequence[Problem]) -> str:
    first = str(problems[0])
    return first if len(problems) == 1 else f"{len(problems)} problems; the first: {first}"


def _rows_per_step(config: Any) -> int:
    accumulated = max(int(config.train_config.gradient_accumulation_steps), 1)
    return int(config.data_config.batch_size) * accumulated


def _too_large(config: Any) -> str:
    """Why the tables do not fit into this machine, weights and a like amount of optimizer state."""
    import torch

    from tzgen.embeddings.memory import available_bytes
    from tzgen.features import create_features

    tables = {}
    for feature in create_features(config):
        if feature.table is not None:
            tables[feature.table.name] = feature.table
    optimizer = config.train_config.sparse_optimizer.WhichOneof("optimizer") or ""
    needed = 0
    for table in tables.values():
        width = table.embedding_dim
        state = 4 if optimizer.startswith("rowwise") else 4 * width
        needed += table.num_embeddings * (width * BYTES.get(table.data_type, 4) + state)
    free = available_bytes(torch.device("cpu"))
    if needed < free:
        return ""
    return f"tables need {needed / 2**30:.1f} GiB, free are {free / 2**30:.1f}"


def _write_rows(config: Any, folder: Path) -> None:
    """Rows for STEPS steps, and a few to evaluate on, from the config's own features."""
    import pyarrow.parquet as pq

    from tzgen.features import create_features
    from tzgen.features.synthesis import synthesise

    features = create_features(config)
    rows = STEPS * _rows_per_step(config)
    pq.write_table(synthesise(config, features, rows, seed=1), folder / "train.parquet")
    pq.write_table(synthesise(config, features, EVAL_ROWS, seed=2), folder / "eval.parquet")


def _train(path: Path, folder: Path, timeout: float) -> tuple[str, str]:
    """The verb as a user would call it; trained if a checkpoint at or after STEPS lies there."""
    command = [sys.executable, "-m", "tzgen.train_eval", "--pipeline_config", str(path.resolve())]
    command += ["--train_input_path", str(folder / "train.parquet")]
    command += ["--eval_input_path", str(folder / "eval.parquet")]
    command += ["--model_dir", str(folder / "model"), "--set", READER]
    try:
        ended = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return "failed", f"not done after {timeout:.0f} s"
    if ended.returncode != 0:
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        return "failed", f"status {ended.returncode}: {lines[-1] if lines else 'no message'}"
    matches = [CHECKPOINT.search(str(entry)) for entry in (folder / "model").glob("model.ckpt-*")]
    step = max((int(match.group(1)) for match in matches if match), default=0)
    if step < STEPS:
        return "failed", f"the last checkpoint is at step {step}, not {STEPS}"
    return "trained", f"{step} steps"


def table(outcomes: Sequence[Outcome]) -> str:
    """Outcomes as aligned text, surprises last and in full."""
    width = max(len(outcome.text) for outcome in outcomes)
    models = max(len(outcome.model) for outcome in outcomes)
    lines = [f"{'text':<{width}}  {'model':<{models}}  {'outcome':<8} seconds"]
    for one in outcomes:
        detail = "" if one.surprise else one.detail
        front = f"{one.text:<{width}}  {one.model:<{models}}  {one.status:<8}"
        lines.append(f"{front} {one.seconds:7.1f}  {detail}".rstrip())
    surprises = [outcome for outcome in outcomes if outcome.surprise]
    for one in surprises:
        lines.append(f"\n{one.text} ({one.model}): {one.status}\n  {one.detail}")
    kinds = dict.fromkeys(outcome.status for outcome in outcomes)
    counts = ", ".join(f"{sum(o.status == kind for o in outcomes)} {kind}" for kind in kinds)
    return "\n".join([*lines, f"\n{len(outcomes)} texts: {counts}."])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a folder with *.config somewhere below")
    parser.add_argument("--train", action="store_true", help="train two steps of what is supported")
    parser.add_argument("--only", default="", help="texts whose path contains this")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one training")
    args = parser.parse_args(argv)
    paths = sorted(path for path in args.folder.rglob("*.config") if args.only in str(path))
    if not paths:
        chosen = f" whose path contains {args.only!r}" if args.only else ""
        parser.error(f"no *.config below {args.folder}{chosen}")
    outcomes = []
    for path in paths:
        name = str(path.relative_to(args.folder))
        print(f"  {name} ...", file=sys.stderr, flush=True)
        outcomes.append(examine(path, name, train=args.train, timeout=args.timeout))
    print(table(outcomes))
    return 1 if any(outcome.surprise for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
