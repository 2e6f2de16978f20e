# SPDX-License-Identifier: Apache-2.0
"""The first broken loss is found, however late one looks, and its rows are named."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tzgen.build import StepOutput
from tzgen.data.batch import Batch, Source
from tzgen.errors import UserError
from tzgen.models.base import Outputs
from tzgen.objectives import LossTerm
from tzgen.train.environment import Env
from tzgen.train.finite import LossWatch

ENV = Env(0, 1, 0, torch.device("cpu"))


def output(loss: float, rows: list[int]) -> StepOutput:
    source = Source(("a.parquet",), torch.zeros(len(rows), dtype=torch.int32), torch.tensor(rows))
    term = LossTerm(torch.tensor(loss), torch.tensor(2.0), 1.0)
    terms = {"bce": term, "fine": LossTerm(torch.tensor(1.0), torch.tensor(2.0), 1.0)}
    batch = Batch(num_rows=len(rows), source=source)
    return StepOutput(torch.tensor(loss), terms, Outputs({}, {}, None), batch)


def test_finite_losses_pass_and_the_latest_is_known() -> None:
    watch = LossWatch(ENV, Path("m"))
    watch.check()
    assert math.isnan(watch.latest)
    watch.add(1, output(0.5, [0]))
    watch.add(2, output(0.25, [1]))
    watch.check()
    assert watch.latest == 0.25


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_the_first_broken_step_is_named(broken: float) -> None:
    watch = LossWatch(ENV, Path("m"))
    for step, loss in enumerate([0.5, broken, math.nan], 1):
        watch.add(step, output(loss, [step * 10, step * 10 + 1]))
    with pytest.raises(UserError) as caught:
        watch.check()
    text = str(caught.value)
    assert text.startswith("step 2: loss is") and "bce is" in text and "fine" not in text
    assert "a.parquet rows 20, 21" in text and "30" not in text


def test_nothing_is_looked_at_twice() -> None:
    watch = LossWatch(ENV, Path("m"))
    watch.add(1, output(math.nan, [0]))
    with pytest.raises(UserError):
        watch.check()
    watch.check()
