# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: passive OpenMP, a fixed seed, poisoned memory, where real data lies."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: see CONTRIBUTING.md

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# Reasons for which CI may skip a test; anything else fails it there. Real data is present in CI.
ALLOWED_SKIPS = ("needs a CUDA device", "needs a C++ compiler", "needs git")


@pytest.fixture(autouse=True)
def seeded_and_poisoned() -> Iterator[None]:
    """The same seed for every test; torch.empty is filled with NaN: unwritten memory shows."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data beside the checkout; tests that need it skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real data is absent: no ../shared/data beside the checkout")
    return folder


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """With several workers this runs in the one that reports."""
    if report.skipped and isinstance(report.longrepr, tuple):
        _SKIPPED.append((report.nodeid, str(report.longrepr[2]).removeprefix("Skipped: ")))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skip whose reason is not allowed is a failure."""
    wrong = [entry for entry in _SKIPPED if not any(word in entry[1] for word in ALLOWED_SKIPS)]
    if os.environ.get("CI") == "true" and wrong and "PYTEST_XDIST_WORKER" not in os.environ:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was skipped, by reason."""
    reasons = Counter(reason for _, reason in _SKIPPED)
    for reason, count in sorted(reasons.items()):
        allowed = any(word in reason for word in ALLOWED_SKIPS)
        note = "" if allowed else "   (fails CI: not in ALLOWED_SKIPS)"
        terminalreporter.write_line(f"skipped {count}: {reason}{note}")


_SKIPPED: list[tuple[str, str]] = []
