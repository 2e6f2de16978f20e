# SPDX-License-Identifier: Apache-2.0
"""What build.py counts of a batch."""

from __future__ import annotations

import torch

from tzgen.build import num_tokens
from tzgen.data.batch import Batch, Ids, Ragged


def test_tokens_are_the_steps_of_the_longest_sequence() -> None:
    nothing, three = torch.zeros(0, dtype=torch.int64), torch.tensor([2, 1])
    pooled = Ids(torch.zeros(9, dtype=torch.int64), torch.tensor([4, 5]))
    looked_up = Ids(torch.zeros(3, dtype=torch.int64), torch.ones(3), seq_lengths=three, max_len=2)
    plain = Ragged(torch.zeros(7, 1), torch.tensor([7, 0]), 7)
    assert num_tokens(Batch(2, ids={"a": pooled})) == 0
    assert num_tokens(Batch(2, ids={"a": pooled, "b": looked_up})) == 3
    # generators read item ids without a table: their sequences count as well
    assert num_tokens(Batch(2, dense={"c": plain})) == 7
    assert num_tokens(Batch(2, ids={"b": looked_up}, dense={"c": plain})) == 7
    assert num_tokens(Batch(0, dense={"c": Ragged(nothing[:, None], nothing, 0)})) == 0
