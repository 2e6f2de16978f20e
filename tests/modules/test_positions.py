# SPDX-License-Identifier: Apache-2.0
"""Which rows of the tables each token takes, worked by hand; values: test_transducer.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tzgen.config.options import fields_match
from tzgen.modules.positions import GRPositionalEncoderOptions, HSTUPositionalEncoder
from tzgen.modules.sequence import Events, TokenSequence, assemble
from tzgen.protos import module_pb2

EPOCH = 1_750_000_000  # float32 steps by 128 s here


def tokens() -> TokenSequence:
    """One user: 2 contextual tokens, 4 events, 2 candidates; another: 2, 0, 1."""

    def int64(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int64)

    ages = [7 * 86400, 3600, 61, 60]
    events = Events(
        uih=torch.zeros(4, 1),
        uih_lengths=int64(4, 0),
        uih_timestamps=EPOCH - int64(*ages),
        num_candidates=int64(2, 1),
        candidate_timestamps=int64(EPOCH - 59, EPOCH, EPOCH),
        query_time=int64(EPOCH, EPOCH),
        max_uih_len=4,
        max_candidates=2,
    )
    contextual, targets = torch.zeros(2, 2, 3), torch.zeros(3, 3)
    return assemble(
        contextual=contextual,
        history=torch.zeros(4, 3),
        tokens_per_event=1,
        targets=targets,
        events=events,
    )


def encoder(
    buckets: int = 20, time: int | None = None, fn: str = "sqrt", increments: float = 60.0
) -> HSTUPositionalEncoder:
    options = GRPositionalEncoderOptions(buckets, time, time is not None, fn, increments)
    return HSTUPositionalEncoder(options, embedding_dim=3)


def test_options_are_the_schema() -> None:
    descriptor = module_pb2.GRPositionalEncoder.DESCRIPTOR
    assert fields_match(GRPositionalEncoderOptions, descriptor) == []


def test_forward_positions_without_time() -> None:
    assert encoder()._positions(tokens()).tolist() == [0, 1, 2, 3, 4, 5, 6, 6, 0, 1, 2]
    assert encoder(5)._positions(tokens()).tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 0, 1, 2]


def test_backward_positions_with_time() -> None:
    """Candidates stand at C = 2, the newest event at 3, the oldest at 6; contextual at 0 and 1."""
    assert encoder(time=9)._positions(tokens()).tolist() == [0, 1, 6, 5, 4, 3, 2, 2, 0, 1, 2]
    assert encoder(5, time=9)._positions(tokens()).tolist() == [0, 1, 4, 4, 4, 3, 2, 2, 0, 1, 2]


def test_ages_are_exact_at_todays_epoch() -> None:
    """Ages 7 d, 1 h, 61 s, 60 s; candidates 59 s and 0; contextual tokens are as old as time."""
    got = encoder(time=200)._ages(tokens()).tolist()
    assert got == [200, 200, 100, 7, 1, 1, 0, 0, 200, 200, 0]
    fine = encoder(time=10_000_000, increments=1.0)._ages(tokens()).tolist()
    assert fine[3:8] == [60, 7, 7, 7, 0]


def test_log_ages() -> None:
    got = encoder(time=15, fn="log", increments=1.0)._ages(tokens()).tolist()
    assert got[2:8] == [13, 8, 4, 4, 4, 0]


def test_tables_and_scale() -> None:
    made = encoder(25, time=16)
    assert made.position.shape == (25, 3) and made.position.abs().max() <= 0.2
    assert made.time is not None
    assert made.time.shape == (17, 3) and made.time.abs().max() <= 0.25
    x = torch.randn(11, 3)
    before, after = made(tokens()), made(tokens().with_x(x))
    torch.testing.assert_close(after - before, x * 3**0.5)


def test_refuses_words_and_missing_buckets() -> None:
    with pytest.raises(ValueError, match="'sqrt' or 'log'"):
        encoder(fn="linear")
    with pytest.raises(ValueError, match="needs num_time_buckets"):
        encoder(time=0)
