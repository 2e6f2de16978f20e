# SPDX-License-Identifier: Apache-2.0
"""When a run logs, evaluates and saves."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from tzgen.protos.train_pb2 import TrainConfig
from tzgen.train.cadence import Cadence


def due(text: str, *, evaluates: bool = True) -> dict[str, list[int]]:
    """The steps and epochs up to 12 at which each thing happens."""
    cadence = Cadence(text_format.Parse(text, TrainConfig()), evaluates=evaluates)
    asked = {
        "logs": cadence.logs,
        "saves": cadence.saves_at,
        "saves_epoch": cadence.saves_after,
        "evaluates": cadence.evaluates_at,
        "evaluates_epoch": cadence.evaluates_after,
    }
    found = {name: [n for n in range(1, 13) if ask(n)] for name, ask in asked.items()}
    return {name: steps for name, steps in found.items() if steps}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"logs": [1]}),
        ("log_step_count_steps: 5", {"logs": [1, 5, 10]}),
        ("log_step_count_steps: 0", {"logs": [1]}),
        ("save_checkpoints_steps: 6", {"logs": [1], "saves": [6, 12], "evaluates": [6, 12]}),
        ("save_checkpoints_steps: 0", {"logs": [1]}),
        (
            "save_checkpoints_epochs: 5",
            {"logs": [1], "saves_epoch": [5, 10], "evaluates_epoch": [5, 10]},
        ),
        (
            "save_checkpoints_epochs: 12 save_checkpoints_steps: 7",
            {
                "logs": [1],
                "saves": [7],
                "evaluates": [7],
                "saves_epoch": [12],
                "evaluates_epoch": [12],
            },
        ),
        (
            "save_checkpoints_steps: 6 eval_steps: 4",
            {"logs": [1], "saves": [6, 12], "evaluates": [4, 8, 12]},
        ),
        (
            "save_checkpoints_steps: 6 eval_epochs: 8",
            {"logs": [1], "saves": [6, 12], "evaluates_epoch": [8]},
        ),
    ],
)
def test_periods(text: str, expected: dict[str, list[int]]) -> None:
    assert due(text) == expected


def test_epochs_alone_mean_no_default_of_a_thousand_steps() -> None:
    cadence = Cadence(TrainConfig(save_checkpoints_epochs=1), evaluates=True)
    assert not cadence.saves_at(1000) and not cadence.evaluates_at(1000)
    assert Cadence(TrainConfig(), evaluates=True).saves_at(1000)


def test_without_rows_nothing_is_evaluated() -> None:
    assert "evaluates" not in due("save_checkpoints_steps: 1 eval_epochs: 1", evaluates=False)
    assert "evaluates_epoch" not in due("eval_epochs: 1", evaluates=False)
