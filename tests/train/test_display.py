# SPDX-License-Identifier: Apache-2.0
"""Rates that mean something, on a terminal and in a file."""

from __future__ import annotations

import io
import logging

import pytest

from tzgen.log import LOGGER
from tzgen.train import display
from tzgen.train.display import Display, Meter, si

RATES = {"steps": 2.0, "samples": 64.0, "tokens": 12_345.0}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    LOGGER.propagate = True
    caplog.set_level(logging.INFO, "tzgen")
    return caplog


def test_a_slow_first_step_is_forgotten() -> None:
    meter = Meter()
    assert meter.rates() == {"steps": 0.0, "samples": 0.0, "tokens": 0.0}
    meter.add(20.0, samples=10, tokens=100)
    assert meter.rates()["steps"] == pytest.approx(0.05)
    for _ in range(400):
        meter.add(0.1, samples=10, tokens=100)
    assert meter.rates() == pytest.approx({"steps": 10, "samples": 100, "tokens": 1000}, rel=0.05)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5231, "0.523"),
        (41.27, "41.3"),
        (999.4, "999"),
        (1234, "1.23k"),
        (2.5e6, "2.5M"),
        (3e9, "3G"),
        (999_900, "1M"),
    ],
)
def test_three_digits_and_a_unit(value: float, text: str) -> None:
    assert si(value) == text


def test_files_get_a_line_each_half_minute(lines, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(display.sys, "stderr", io.StringIO())
    shown = Display(total=200, initial=100)
    for _ in range(70):
        now[0] += 1.0
        shown.step(RATES, {"loss": 0.25})
    assert len(lines.messages) == 2
    assert lines.messages[0] == (
        "step 130 of 200, loss 0.25, 64 samples/s, 12.3k tokens/s, 2 steps/s, 0:00:35 left"
    )
    shown.close()
    assert lines.messages[2].startswith("step 170 of 200")
    shown.close()
    assert len(lines.messages) == 3, "said once"


def test_no_end_no_estimate(lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display.sys, "stderr", io.StringIO())
    shown = Display(total=None, initial=0)
    shown.step(RATES, {})
    shown.close()
    assert lines.messages == ["step 1, 64 samples/s, 12.3k tokens/s"]


def test_terminals_get_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(display.sys, "stderr", terminal)
    shown = Display(total=4, initial=1)
    shown.step(RATES, {"loss": 0.25})
    shown.write("a line of its own")
    shown.close()
    text = terminal.getvalue()
    assert "2/4" in text and "loss 0.25, 64 samples/s, 12.3k tokens/s" in text
    assert "a line of its own\n" in text
