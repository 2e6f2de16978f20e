# SPDX-License-Identifier: Apache-2.0
"""Ragged encoders against loops over single histories, with a query a row or a candidate."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzgen.modules.sequence_encoders import (
    DinEncoder,
    MultiWindowDinEncoder,
    PoolingEncoder,
    SelfAttentionEncoder,
    SequenceEncoder,
    SimpleAttention,
)

D = 4
LENGTHS = [3, 0, 1, 5]


def scorer(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 6), nn.ReLU(), nn.Linear(6, 1))


def din_one(encoder: DinEncoder, steps: Tensor, query: Tensor) -> Tensor:
    query = F.pad(query, (0, D - len(query)))
    features = [torch.cat([query, s, query - s, query * s]) for s in steps]
    if not features:
        return torch.zeros(D)
    scores = encoder.scorer(torch.stack(features))[:, 0]
    return torch.softmax(scores, 0) @ steps


def simple_one(encoder: SimpleAttention, steps: Tensor, query: Tensor) -> Tensor:
    query = F.pad(query, (0, D - len(query)))
    return torch.softmax(steps @ query, 0) @ steps if len(steps) else torch.zeros(D)


def windows_one(encoder: MultiWindowDinEncoder, steps: Tensor, query: Tensor) -> Tensor:
    query = F.pad(query, (0, D - len(query)))
    parts, start = [], 0
    for end in encoder.window_ends.tolist():
        part = steps[start:end]
        total = torch.zeros(D)
        for s in part:
            total = total + encoder.active(encoder.scorer(torch.cat([s, query * s, query]))) * s
        parts.append(total / max(len(part), 1))
        start = end
    return torch.cat([*parts, query])


ATTENDING: list[tuple[Callable[[], SequenceEncoder], Callable[..., Tensor], int]] = [
    (lambda: DinEncoder(sequence_dim=D, query_dim=3, scorer=scorer(4 * D)), din_one, 99),
    (
        lambda: DinEncoder(sequence_dim=D, query_dim=3, scorer=scorer(4 * D), max_seq_length=2),
        din_one,
        2,
    ),
    (lambda: SimpleAttention(sequence_dim=D, query_dim=3), simple_one, 99),
    (
        lambda: MultiWindowDinEncoder(
            sequence_dim=D, query_dim=3, scorer=scorer(3 * D), windows_len=[1, 3]
        ),
        windows_one,
        4,
    ),
]


@pytest.mark.parametrize(
    ("make", "one", "kept"), ATTENDING, ids=["din", "din-2", "simple", "windows"]
)
@pytest.mark.parametrize("lengths", [LENGTHS, [0, 0], [], [1]], ids=str)
def test_one_query_a_row(
    make: Callable[[], SequenceEncoder], one: Callable[..., Tensor], kept: int, lengths: list[int]
) -> None:
    encoder = make()
    sequence = torch.randn(sum(lengths), D)
    query = torch.randn(len(lengths), 3)
    got = encoder(
        sequence, torch.tensor(lengths, dtype=torch.int64), max_len=max([0, *lengths]), query=query
    )
    assert got.shape == (len(lengths), encoder.output_dim)
    for row, steps in enumerate(sequence.split(lengths)):
        torch.testing.assert_close(got[row], one(encoder, steps[:kept], query[row]))


@pytest.mark.parametrize(
    ("make", "one", "kept"), ATTENDING, ids=["din", "din-2", "simple", "windows"]
)
def test_one_query_a_candidate_equals_repeated_rows(
    make: Callable[[], SequenceEncoder], one: Callable[..., Tensor], kept: int
) -> None:
    encoder = make()
    sequence, query = torch.randn(sum(LENGTHS), D), torch.randn(5, 3)
    rows = torch.tensor([0, 0, 1, 3, 3])
    got = encoder(sequence, torch.tensor(LENGTHS), max_len=5, query=query, query_rows=rows)
    histories = sequence.split(LENGTHS)
    for index, row in enumerate(rows.tolist()):
        torch.testing.assert_close(got[index], one(encoder, histories[row][:kept], query[index]))


@pytest.mark.parametrize("kind", ["sum", "mean"])
def test_pooling(kind: str) -> None:
    sequence = torch.randn(sum(LENGTHS), D)
    encoder = PoolingEncoder(sequence_dim=D, pooling_type=kind, max_seq_length=2)
    got = encoder(sequence, torch.tensor(LENGTHS), max_len=5)
    for row, steps in enumerate(sequence.split(LENGTHS)):
        want = steps[:2].sum(0) if kind == "sum" else steps[:2].sum(0) / max(len(steps[:2]), 1)
        torch.testing.assert_close(got[row], want)


def test_self_attention_ignores_padding_and_survives_empty_rows() -> None:
    encoder = SelfAttentionEncoder(sequence_dim=D, multihead_attn_dim=6, num_heads=2)
    sequence = torch.randn(sum(LENGTHS), D, requires_grad=True)
    got = encoder(sequence, torch.tensor(LENGTHS), max_len=5)
    got.sum().backward()
    assert sequence.grad is not None and torch.isfinite(sequence.grad).all()
    for row, steps in enumerate(sequence.split(LENGTHS)):
        want = torch.zeros(6)
        if len(steps):
            heads = []
            for head in (slice(0, 3), slice(3, 6)):
                q, k, v = (f(steps)[:, head] for f in (encoder.query, encoder.key, encoder.value))
                heads.append(torch.softmax(q @ k.T / 3**0.5, 1) @ v)
            want = encoder.out(torch.cat(heads, 1)).mean(0)
        torch.testing.assert_close(got[row], want)
    assert encoder(sequence[:0], torch.zeros(0, dtype=torch.int64), max_len=0).shape == (0, 6)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="it has 5"):
        DinEncoder(sequence_dim=D, query_dim=5, scorer=nn.Identity())
    with pytest.raises(ValueError, match="needs a query"):
        SimpleAttention(sequence_dim=D, query_dim=D)(
            torch.zeros(1, D), torch.tensor([1]), max_len=1
        )
    with pytest.raises(ValueError, match="'sum' or 'mean'"):
        PoolingEncoder(sequence_dim=D, pooling_type="max")
    with pytest.raises(ValueError, match="no multiple"):
        SelfAttentionEncoder(sequence_dim=D, multihead_attn_dim=5, num_heads=2)
