# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: passive OpenMP, fixed seed, poisoned uninitialised memory, where real data lies."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: see CONTRIBUTING.md

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def seeded_and_poisoned() -> Iterator[None]:
    """The same seed for every test; torch.empty is filled with NaN so that unwritten memory shows."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets beside the checkout; tests that need it skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real data is absent: no ../shared/data beside the checkout")
    return folder
