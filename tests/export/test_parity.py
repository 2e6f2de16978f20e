# SPDX-License-Identifier: Apache-2.0
"""What counts as equal, and the cut-down batches that a package is proved on."""

from __future__ import annotations

import torch

from tzgen.data.batch import Batch, Ids, Ragged
from tzgen.export.parity import cut_sequences, edge_cases, head_rows, largest_difference


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_the_largest_difference_is_named() -> None:
    expected = {"a": tensor(1, 2), "b": tensor(3)}
    assert largest_difference(expected, {"a": tensor(1, 2), "b": tensor(3.5)}) == ("b", 0.5)
    assert largest_difference(expected, {"a": tensor(1, 2)}) == ("b", float("inf"))
    assert largest_difference(expected, {"a": tensor(1), "b": tensor(3)})[1] == float("inf")


def test_new_nan_is_infinite_and_shared_nan_is_none() -> None:
    nan = float("nan")
    assert largest_difference({"a": tensor(1)}, {"a": tensor(nan)})[1] == float("inf")
    assert largest_difference({"a": tensor(nan, 1)}, {"a": tensor(nan, 1)})[1] == 0.0
    assert largest_difference({"a": tensor()}, {"a": tensor()})[1] == 0.0


def sample() -> Batch:
    """Rows with histories of 2, 0 and 3 steps; the second step of row 0 has two ids."""
    ids = Ids(
        values=torch.tensor([1, 2, 3, 4, 5, 6]),
        lengths=torch.tensor([1, 2, 1, 0, 2]),
        seq_lengths=torch.tensor([2, 0, 3]),
        max_len=3,
    )
    candidates = Ragged(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1, 1, 1]), 1)
    times = Ragged(torch.arange(5), torch.tensor([2, 0, 3]), 3)
    return Batch(
        num_rows=3,
        ids={"h": ids, "u": Ids(torch.tensor([7, 8]), torch.tensor([1, 0, 1]))},
        dense={"c": candidates, "t": times, "x": torch.tensor([[1.0], [2.0], [3.0]])},
    )


def test_cutting_keeps_the_newest_step_and_whole_sequences() -> None:
    cut = cut_sequences(sample(), 1, {"c"})
    assert cut.ids["h"].values.tolist() == [2, 3, 5, 6]
    assert cut.ids["h"].lengths.tolist() == [2, 2]
    assert cut.ids["h"].seq_lengths.tolist() == [1, 0, 1]
    assert cut.ids["u"].values.tolist() == [7, 8]
    assert cut.dense["t"].values.tolist() == [1, 4]
    assert cut.dense["c"].values.shape == (3, 1)


def test_cutting_everything() -> None:
    cut = cut_sequences(sample(), 0, {"c"})
    assert cut.ids["h"].values.numel() == 0 and cut.ids["h"].seq_lengths.tolist() == [0, 0, 0]
    assert cut.dense["t"].lengths.tolist() == [0, 0, 0] and cut.dense["t"].max_len == 0


def test_the_first_row_alone() -> None:
    head = head_rows(sample(), 1)
    assert head.num_rows == 1
    assert head.ids["h"].values.tolist() == [1, 2, 3]
    assert head.ids["u"].values.tolist() == [7]
    assert head.dense["t"].values.tolist() == [0, 1] and head.dense["x"].tolist() == [[1.0]]


def test_cases_cover_what_compilers_get_wrong() -> None:
    assert list(edge_cases(sample(), {"c"})) == [
        "as saved",
        "first row",
        "one-step histories",
        "empty histories",
    ]
