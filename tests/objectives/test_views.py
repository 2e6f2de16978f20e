# SPDX-License-Identifier: Apache-2.0
"""Labels and weights brought to the samples: what fits, what is repeated, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from objectives.cases import BCE, ragged, rows_batch, task_of
from tzgen.data.batch import Batch
from tzgen.errors import UserError
from tzgen.objectives.views import Samples, label_of, samples_of, weight_of

TASK = task_of(BCE)


def candidates(lengths: list[int], batch: Batch) -> Samples:
    logits = torch.zeros(sum(lengths))
    return samples_of(batch, TASK, logits, torch.tensor(lengths))


def test_labels_of_rows_and_of_candidates() -> None:
    batch = rows_batch({"y": [1.0, 0.0]})
    assert label_of(TASK, batch, samples_of(batch, TASK, torch.zeros(2), None)).tolist() == [1, 0]
    batch = Batch(3, labels={"y": ragged([1, 0, 1], [2, 0, 1])})
    assert label_of(TASK, batch, candidates([2, 0, 1], batch)).tolist() == [1, 0, 1]
    column = Batch(2, labels={"y": torch.tensor([[1.0], [0.0]])})
    assert label_of(TASK, column, samples_of(column, TASK, torch.zeros(2), None)).tolist() == [1, 0]


def test_bitmask_takes_any_bit_up_to_the_63rd() -> None:
    high = replace(TASK, task_bitmask=2**62 + 4)
    batch = rows_batch({"y": torch.tensor([4, 2**62, 3, 2**62 + 4, 0, -1])})
    samples = samples_of(batch, high, torch.zeros(6), None)
    assert label_of(high, batch, samples).tolist() == [1, 1, 0, 1, 0, 1]
    assert label_of(high, batch, samples).dtype == torch.int64
    with pytest.raises(UserError, match=r"task 'click'.*float32.*int64"):
        floats = rows_batch({"y": [4.0]})
        label_of(high, floats, samples_of(floats, high, torch.zeros(1), None))


@pytest.mark.parametrize(
    ("labels", "lengths"),
    [
        (torch.tensor([1.0, 0.0]), [2, 1]),  # one a row, three candidates
        (ragged([1.0, 0.0], [1, 1]), [2, 1]),  # two values, three candidates
        (ragged([1.0, 0.0, 1.0], [1, 2]), [2, 1]),  # three, but in other rows
        (torch.zeros(3, 2), [2, 1]),
    ],
    ids=["per row", "too few", "shifted", "wide"],
)
def test_a_label_that_does_not_fit_names_task_and_sizes(labels: object, lengths: list[int]) -> None:
    batch = Batch(2, labels={"y": labels})  # type: ignore[dict-item]
    with pytest.raises(UserError, match=r"task 'click'.*'y'.*\d.*\d"):
        label_of(TASK, batch, candidates(lengths, batch))


def test_ragged_labels_without_candidates_are_one_a_row() -> None:
    batch = Batch(2, labels={"y": ragged([1.0, 0.0], [1, 1])})
    assert label_of(TASK, batch, samples_of(batch, TASK, torch.zeros(2), None)).tolist() == [1, 0]
    shifted = Batch(2, labels={"y": ragged([1.0, 0.0], [2, 0])})
    with pytest.raises(UserError, match="2 values in row 0"):
        label_of(TASK, shifted, samples_of(shifted, TASK, torch.zeros(2), None))


def test_missing_columns_list_what_there_is() -> None:
    batch = rows_batch({"other": [1.0]})
    samples = samples_of(batch, TASK, torch.zeros(1), None)
    with pytest.raises(UserError, match=r"label_name 'y'.*other.*label_fields"):
        label_of(TASK, batch, samples)
    with pytest.raises(UserError, match="grouping_key is 'user'"):
        samples.ids("user", "grouping_key")


def test_weights_of_rows_are_repeated_for_candidates() -> None:
    batch = Batch(
        2,
        labels={"y": ragged([1, 0, 1], [1, 2]), "seen": ragged([0, 3, 0], [1, 2])},
        weights={"w": torch.tensor([2.0, 5.0]), "each": ragged([1.0, 2.0, 3.0], [1, 2])},
    )
    samples = candidates([1, 2], batch)
    assert weight_of(TASK, batch, samples) is None
    by_row = weight_of(replace(TASK, sample_weight_name="w"), batch, samples)
    assert by_row is not None and by_row.tolist() == [2, 5, 5]
    space = replace(
        TASK,
        sample_weight_name="each",
        task_space_indicator_label="seen",
        in_task_space_weight=10.0,
        out_task_space_weight=0.5,
    )
    weights = weight_of(space, batch, samples)
    assert weights is not None and weights.tolist() == [0.5, 20, 1.5]


def test_raw_ids_follow_the_candidates() -> None:
    batch = rows_batch({"y": [0.0, 0.0, 0.0]}, raw_ids={"user": torch.tensor([7, 8, 9])})
    assert candidates([2, 0, 1], batch).ids("user", "key").tolist() == [7, 7, 9]
