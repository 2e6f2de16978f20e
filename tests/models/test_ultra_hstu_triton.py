# SPDX-License-Identifier: Apache-2.0
"""UltraHSTU trains on Triton's kernels (interpreted without a GPU) as it does on PyTorch's."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from ultra_runs import kernels_loaded, two_steps

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ops"))

from interpreted import interpreter


def test_two_steps_on_triton_are_those_on_pytorch() -> None:
    """Semi-local attention, truncation and interleaved actions, in two channels."""
    expected = two_steps("PYTORCH")
    with interpreter() as run:
        found = run(two_steps, "TRITON")
        assert run(kernels_loaded)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-4, atol=2e-5, msg=name)
    moved = expected["2.click"] - expected["0.click"]
    assert moved.abs().max() > 1e-3  # the steps did something
