# SPDX-License-Identifier: Apache-2.0
"""Labels of micro-batches are the same rows as those of the groups."""

from __future__ import annotations

import torch

from tzgen.data.batch import Batch, Ragged
from tzgen.embeddings import split_groups
from tzgen.train.micro import split_labels


def ragged(lengths: list[int], start: int = 0) -> Ragged:
    total = sum(lengths)
    return Ragged(torch.arange(start, start + total), torch.tensor(lengths), max(lengths))


def test_rows_and_candidates_stay_together() -> None:
    lengths = [2, 0, 3, 1, 4]
    batch = Batch(
        num_rows=5,
        labels={"per_candidate": ragged(lengths), "per_row": torch.arange(5)},
        weights={"w": ragged(lengths, 100)},
        raw_ids={"user": torch.arange(50, 55)},
    )
    groups = {"candidate": Ragged(torch.arange(10)[:, None], torch.tensor(lengths), 4)}
    for parts in (1, 2, 3, 5, 7):
        cut = split_labels(batch, parts)
        matching = split_groups(groups, parts)
        assert len(cut) == parts == len(matching)
        for labels, group in zip(cut, matching, strict=True):
            given = labels.labels["per_candidate"]
            assert torch.equal(given.values, group["candidate"].values.flatten())
            assert torch.equal(given.lengths, group["candidate"].lengths)
            assert torch.equal(labels.weights["w"].values, given.values + 100)
            assert torch.equal(labels.raw_ids["user"], labels.labels["per_row"] + 50)
            assert labels.num_rows == len(given.lengths)
        rows = torch.cat([labels.labels["per_row"] for labels in cut])
        assert torch.equal(rows, torch.arange(5))
