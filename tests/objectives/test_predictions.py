# SPDX-License-Identifier: Apache-2.0
"""Output names are TorchEasyRec's; values are what the loss says they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from objectives.cases import BCE, outputs_of, task_of
from tzgen.config.tasks import TaskSpec
from tzgen.errors import UserError
from tzgen.objectives.predictions import predictions

SOFTMAX = "losses {{ softmax_cross_entropy {{}} }} num_class: {}"
JRC = 'losses { jrc_loss { session_name: "s" } } num_class: 2'


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (BCE, ["logits_t", "probs_t"]),
        (
            "losses { binary_focal_loss {} } losses { listwise_rank_loss {} }",
            ["logits_t", "probs_t"],
        ),
        (SOFTMAX.format(2), ["logits_t", "probs_t", "probs1_t"]),
        (JRC, ["logits_t", "probs_t", "probs1_t"]),
        (SOFTMAX.format(4), ["logits_t", "probs_t"]),
        ("losses { l2_loss {} }", ["y_t"]),
        ("losses { listwise_rank_loss {} }", ["logits_t"]),
    ],
)
def test_names(body: str, names: list[str]) -> None:
    task = task_of(body, name="t")
    shape = (3, task.num_class) if task.num_class > 1 else (3,)
    outputs = outputs_of({"t": torch.randn(shape)})
    assert list(predictions(outputs, [task])) == names
    alone = replace(task, name="")
    unnamed = predictions(outputs_of({"": torch.randn(shape)}), [alone])
    assert list(unnamed) == [name.removesuffix("_t") for name in names]


def test_values() -> None:
    tasks = [task_of(BCE, name="a"), task_of(SOFTMAX.format(2), name="b")]
    a, b = torch.randn(3, 1), torch.randn(3, 2, dtype=torch.bfloat16)
    got = predictions(outputs_of({"a": a, "b": b}), tasks)
    torch.testing.assert_close(got["logits_a"], a[:, 0])
    torch.testing.assert_close(got["probs_a"], torch.sigmoid(a[:, 0]))
    torch.testing.assert_close(got["probs1_b"], torch.softmax(b.float(), 1)[:, 1])
    assert all(value.dtype == torch.float32 for value in got.values())


def test_missing_output() -> None:
    task: TaskSpec = task_of(BCE, name="a")
    with pytest.raises(UserError, match="task 'a' has no output; the model gives: none"):
        predictions(outputs_of({}), [task])
