# SPDX-License-Identifier: Apache-2.0
"""Kill a training run again and again, and compare what comes out with a run left in peace.

    python tools/kill_test.py --pipeline_config examples/configs/dlrm_hstu_ml100k.config
    python tools/kill_test.py --pipeline_config X --seed 3 --kills 5 --set train_config.num_epochs=1

First the config is trained to its end without interruption. Then it is trained in another folder
and killed with SIGKILL at instants that --seed decides and that are printed: one before the first
checkpoint, two while a checkpoint is being written (caught by its `.writing-` folder), the others
after some step has been done. Each time the same command resumes. In the end the losses of every
step must be equal bit for bit, and so must the metrics of every evaluation.

Losses are compared at every step (train_config.log_step_count_steps is set to 1). A run that is
killed before it has written anything gets nowhere, so train_config.save_checkpoints_steps is set as
well: by default to about two checkpoints for a kill. Bit for bit holds on a CPU; elsewhere: --rtol.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOG = "train_log.jsonl"
POLL_SECONDS, LONGEST_DELAY, TAIL_BYTES = 0.002, 0.03, 1 << 16


@dataclass(frozen=True)
class Kill:
    """SIGKILL once `step` is in the log, `delay` seconds later; `writing`: at the next checkpoint
    that is then caught while it is being written."""

    step: int
    writing: bool
    delay: float

    def __str__(self) -> str:
        where = "inside the checkpoint write after step" if self.writing else "after step"
        return f"{where} {self.step} + {self.delay * 1000:.0f} ms"


def plan(seed: int, kills: int, last: int, save_every: int) -> list[Kill]:
    """`kills` instants of a run of `last` steps, in order: the first before any checkpoint, two (or
    as many as there are) inside a write."""
    draw = random.Random(seed)
    first = draw.randrange(save_every)
    later = sorted(draw.sample(range(save_every, last - save_every), kills - 1))
    writing = set(draw.sample(range(len(later)), min(2, len(later))))
    delays = [draw.random() * LONGEST_DELAY for _ in range(kills)]
    rest = [Kill(later[i], i in writing, delays[i + 1]) for i in range(len(later))]
    return [Kill(first, False, delays[0]), *rest]


class Run:
    """One start of the command on one model_dir."""

    def __init__(self, command: Sequence[str], model_dir: Path) -> None:
        self._model_dir, self._log = model_dir, model_dir / LOG
        self._before = self._log.stat().st_ino if self._log.exists() else None
        self._messages = tempfile.TemporaryFile("w+")  # noqa: SIM115  outlives this call
        self._process = subprocess.Popen(
            [*command, "--model_dir", str(model_dir)],
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
            stdout=subprocess.DEVNULL,
            stderr=self._messages,
        )

    def finish(self) -> None:
        """Wait for its end; leaves the program when it failed."""
        if self._process.wait():
            self._messages.seek(0)
            raise SystemExit(f"training failed:\n{self._messages.read()}")

    def kill(self, at: Kill) -> str:
        """Kill it at that instant; where it stood, "" where it ended before."""
        while self._process.poll() is None:
            time.sleep(POLL_SECONDS)
            if not self._resumed() or last_step(self._log) < at.step:
                continue
            if at.writing and not self._torn():
                continue
            time.sleep(at.delay)
            self._process.send_signal(signal.SIGSTOP)  # so that it is seen as it dies
            if at.writing and not self._torn():
                self._process.send_signal(signal.SIGCONT)
                continue
            self._process.kill()
            self._process.wait()
            torn = self._torn()
            return f"step {last_step(self._log)}" + (f", {torn[0]} half written" if torn else "")
        self.finish()
        return ""

    def _resumed(self) -> bool:
        """The log was cut to the resumed step, which replaces it: what lies there is this run's."""
        return self._log.exists() and self._log.stat().st_ino != self._before

    def _torn(self) -> list[str]:
        return [path.name for path in self._model_dir.glob(".writing-*")]


def last_step(log: Path) -> int:
    """The step of the last whole line, 0 without one."""
    with log.open("rb") as stream:
        stream.seek(max(log.stat().st_size - TAIL_BYTES, 0))
        lines = stream.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if lines else 0


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of the log."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def differences(
    mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], rtol: float
) -> list[str]:
    """Losses and metrics that differ, and lines that only one log has."""
    one, other = ({(e["kind"], e["step"]): e for e in log} for log in (mine, theirs))
    found = [f"{kind} at step {step} is in one log only" for kind, step in set(one) ^ set(other)]
    for key in sorted(set(one) & set(other)):
        for name, value in one[key].items():
            compared = key[0] == "eval" or name.startswith("loss")
            if compared and not _equal(value, other[key].get(name), rtol):
                found.append(
                    f"{name} at step {key[1]} ({key[0]}): {value} and {other[key].get(name)}"
                )
    return found


def _equal(one: object, other: object, rtol: float) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= rtol * abs(other)
    return one == other


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--pipeline_config", required=True)
    flags.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    flags.add_argument("--train_input_path")
    flags.add_argument("--eval_input_path")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--kills", type=int, default=10)
    flags.add_argument("--save_checkpoints_steps", type=int, help="default: about two for a kill")
    flags.add_argument("--rtol", type=float, default=0.0, help="0: equal bit for bit")
    flags.add_argument("--work_dir", help="default: a temporary folder, removed at the end")
    return flags


def number_of_steps(args: argparse.Namespace) -> int:
    """How long the run is, from its config and rows."""
    from tzgen.build import build_pipeline, open_loader
    from tzgen.config import load_pipeline

    config = load_pipeline(args.pipeline_config, args.set)
    if config.train_config.num_steps:
        return int(config.train_config.num_steps)
    path = args.train_input_path or config.train_input_path
    loader = open_loader(build_pipeline(config, engine="local"), path, mode="train", num_workers=0)
    return sum(loader.num_batches(epoch) for epoch in range(config.train_config.num_epochs))


def compare(args: argparse.Namespace, folder: Path) -> int:
    """Train twice, once in peace; 1 when the two differ or a kill missed."""
    last = number_of_steps(args)
    every = args.save_checkpoints_steps or max(last // (2 * args.kills + 1), 1)
    if args.kills < 1 or last - 2 * every < args.kills - 1:
        raise SystemExit(f"{last} steps with a checkpoint every {every}: too few for these kills")
    command = [sys.executable, "-m", "tzgen.train_eval", "--pipeline_config", args.pipeline_config]
    for name in ("train_input_path", "eval_input_path"):
        command += [f"--{name}", getattr(args, name)] if getattr(args, name) else []
    sets = ["log_step_count_steps=1", f"save_checkpoints_steps={every}"]
    for text in [*args.set, *(f"train_config.{each}" for each in sets)]:
        command += ["--set", text]
    print(f"{last} steps in peace, with a checkpoint every {every}", flush=True)
    Run(command, folder / "whole").finish()
    print(f"seed {args.seed}:\n{'kill':>4}  {'planned':<52}found", flush=True)
    missed = 0
    for number, at in enumerate(plan(args.seed, args.kills, last, every), 1):
        stood = Run(command, folder / "killed").kill(at)
        missed += not stood
        print(f"{number:>4}  {at!s:<52}{stood or 'it had ended'}", flush=True)
    Run(command, folder / "killed").finish()
    mine, theirs = (read_log(folder / name / LOG) for name in ("killed", "whole"))
    found = differences(mine, theirs, args.rtol)
    kinds = [sum(entry["kind"] == kind for entry in theirs) for kind in ("train", "eval")]
    print(f"{kinds[0]} steps and {kinds[1]} evaluations compared, {len(found)} values differ")
    print("".join(f"  {text}\n" for text in found[:20]), end="")
    return 1 if found or missed else 0


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        raise SystemExit(compare(args, Path(args.work_dir or temporary)))


if __name__ == "__main__":
    main()
