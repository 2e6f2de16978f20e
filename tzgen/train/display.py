# SPDX-License-Identifier: Apache-2.0
"""How far a run is: a bar on a terminal, elsewhere a line every half minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from tqdm import tqdm

from tzgen.log import LOGGER

LINE_SECONDS = 30.0
HALF_LIFE_SECONDS = 5.0


class Meter:
    """Steps, rows and tokens a second of training time, where the past fades: the first step traces
    and waits for the loader, and says nothing about the rest."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._counts = {"steps": 0.0, "samples": 0.0, "tokens": 0.0}

    def add(self, seconds: float, *, samples: int, tokens: int) -> None:
        """Count one step."""
        fade = 0.5 ** (seconds / HALF_LIFE_SECONDS)
        self._seconds = self._seconds * fade + seconds
        for name, more in (("steps", 1), ("samples", samples), ("tokens", tokens)):
            self._counts[name] = self._counts[name] * fade + more

    def rates(self) -> dict[str, float]:
        """{"steps", "samples", "tokens"} a second; zeros before the first step."""
        seconds = self._seconds or float("inf")
        return {name: count / seconds for name, count in self._counts.items()}


class Display:
    """One step at a time, with the newest loss; `total` None where the end is not known."""

    def __init__(self, *, total: int | None, initial: int) -> None:
        self._total, self._step = total, initial
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total, initial=initial, desc="train", unit="step", dynamic_ncols=True
            )
        self._said = time.monotonic()
        self._line: str | None = None

    def step(self, rates: Mapping[str, float], values: Mapping[str, float]) -> None:
        """Count one step; `values` are shown by name."""
        self._step += 1
        shown = [f"{name} {value:.4g}" for name, value in values.items()]
        shown += [f"{si(rates[name])} {name}/s" for name in ("samples", "tokens")]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(shown), refresh=False)
            self._bar.update(1)
            return
        self._line = ", ".join([self._place(), *shown, *self._left(rates["steps"])])
        if time.monotonic() - self._said >= LINE_SECONDS:
            self._flush()

    def write(self, text: str) -> None:
        """Text of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """The last state stays on the screen."""
        if self._bar is not None:
            self._bar.close()
        self._flush()

    def _flush(self) -> None:
        if self._line is not None:
            LOGGER.info("%s", self._line)
        self._line, self._said = None, time.monotonic()

    def _place(self) -> str:
        return f"step {self._step}" + (f" of {self._total}" if self._total else "")

    def _left(self, steps_per_second: float) -> list[str]:
        if not self._total or not steps_per_second:
            return []
        seconds = max(self._total - self._step, 0) / steps_per_second
        left = [f"{timedelta(seconds=round(seconds))} left"] if seconds else []
        return [f"{si(steps_per_second)} steps/s", *left]


def si(value: float) -> str:
    """Three digits and a unit: 0.52, 41.3, 1.24k, 2.5M."""
    for unit in ("", "k", "M"):
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}G"
