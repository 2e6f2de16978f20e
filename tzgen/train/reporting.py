# SPDX-License-Identifier: Apache-2.0
"""What a run tells: a display, a JSONL log that always exists, TensorBoard where it is wanted.

The JSONL log is truncated to the resumed step, so that a killed and resumed run reads like one that
was never interrupted.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tzgen.train.display import Display, Meter

LOG_NAME = "train_log.jsonl"


class Reporter:
    """Rank 0's voice; other ranks hold one that says nothing (`enabled=False`)."""

    def __init__(
        self,
        model_dir: Path,
        *,
        enabled: bool,
        tensorboard: bool,
        resumed_step: int,
        total: int | None,
    ) -> None:
        self._enabled = enabled
        if not enabled:
            return
        path = model_dir / LOG_NAME
        truncate_log(path, resumed_step)
        self._log = path.open("a", encoding="utf-8")
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(model_dir / "tensorboard", purge_step=resumed_step + 1)
        self._display = Display(total=total, initial=resumed_step)
        self._meter = Meter()
        self._shown: dict[str, float] = {}
        self._seconds, self._rows, self._tokens = 0.0, 0, 0
        self._mark = time.monotonic()

    def step(self, rows: int, tokens: int) -> None:
        """Count one step of `rows` samples and `tokens` sequence tokens, of all ranks."""
        if self._enabled:
            seconds = time.monotonic() - self._mark
            self._rows, self._tokens = self._rows + rows, self._tokens + tokens
            self._seconds += seconds
            self._meter.add(seconds, samples=rows, tokens=tokens)
            self._display.step(self._meter.rates(), self._shown)
            self.resume()

    def resume(self) -> None:
        """What happened since the last step was no training: evaluation, a checkpoint."""
        self._mark = time.monotonic()

    def record(self, kind: str, step: int, values: Mapping[str, Any], **extra: Any) -> None:
        """Write one line to the log and its scalars to TensorBoard under `kind`/name."""
        if not self._enabled:
            return
        line = {"kind": kind, "step": step, **extra, **{k: _plain(v) for k, v in values.items()}}
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self._writer.add_scalar(f"{kind}/{name}", value, step)

    def rates(self) -> dict[str, float]:
        """samples/s and tokens/s of the training time since the last call."""
        if not self._enabled:
            return {}
        elapsed = max(self._seconds, 1e-9)
        rates = {"samples_per_s": self._rows / elapsed, "tokens_per_s": self._tokens / elapsed}
        self._seconds, self._rows, self._tokens = 0.0, 0, 0
        return rates

    def show(self, values: Mapping[str, float]) -> None:
        """Put a few numbers beside the progress."""
        if self._enabled:
            self._shown = dict(values)

    def say(self, text: str) -> None:
        """Print lines above the progress."""
        if self._enabled:
            self._display.write(text)

    def close(self) -> None:
        if self._enabled:
            self._display.close()
            self._log.close()
            if self._writer is not None:
                self._writer.close()


def truncate_log(path: Path, step: int) -> None:
    """Drop the lines after `step`, and a last line that a kill cut short. Atomic."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # the run died while writing it
        if entry["step"] <= step:
            kept.append(line)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    temporary.replace(path)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The log as a list of entries."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _plain(value: Any) -> Any:
    """JSON has no NaN: undefined metrics are null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
