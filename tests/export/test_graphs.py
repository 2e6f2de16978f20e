# SPDX-License-Identifier: Apache-2.0
"""Groups as positional tensors and back."""

from __future__ import annotations

import torch

from tzgen.data.batch import Ragged
from tzgen.export.graphs import flatten, inputs_of, unflatten


def test_there_and_back() -> None:
    groups = {
        "user": torch.randn(2, 3),
        "uih": Ragged(torch.randn(5, 4), torch.tensor([2, 3]), 3),
        "times": Ragged(torch.arange(5).unsqueeze(1), torch.tensor([2, 3]), 3),
    }
    inputs = inputs_of(groups, {"uih": 100, "times": 100})
    assert [(entry.name, entry.ragged, entry.max_len) for entry in inputs] == [
        ("user", False, 0),
        ("uih", True, 100),
        ("times", True, 100),
    ]
    flat = flatten(groups, inputs)
    assert len(flat) == 5
    again = unflatten(flat, inputs)
    assert torch.equal(again["user"], groups["user"])
    assert torch.equal(again["uih"].values, groups["uih"].values)
    assert again["times"].values.dtype == torch.int64 and again["uih"].max_len == 100
