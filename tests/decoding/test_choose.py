# SPDX-License-Identifier: Apache-2.0
"""Choosing against sorting in plain Python, ties included."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tzgen.decoding.choose import log_sum_exp, nucleus, perturb, top_slots

from .plain_beam import nucleus as plain_nucleus


def plain_top(keys: list[float], k: int) -> list[int]:
    there = [slot for slot, key in enumerate(keys) if key > -math.inf]
    best = sorted(sorted(there, key=lambda slot: (-keys[slot], slot))[:k])
    return best + [len(keys)] * (min(k, len(keys)) - len(best))


@given(
    n=st.integers(1, 700),
    k=st.integers(1, 9),
    levels=st.sampled_from([1, 2, 5, 1000]),
    dead=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_top_slots_equals_sorting(n: int, k: int, levels: int, dead: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randint(-levels, 1, (3, n), generator=generator) / 8.0
    keys[1] = torch.where(keys[1] == 0, -0.0, keys[1])
    keys[2, ::2] = torch.where(keys[2, ::2] == 0, -0.0, keys[2, ::2])  # equal to 0.0
    keys = keys.masked_fill(torch.rand(3, n, generator=generator) < dead, -torch.inf)
    got = top_slots(keys, k).tolist()
    assert got == [plain_top(row, k) for row in keys.tolist()]


def test_top_slots_orders_tiny_and_huge_numbers() -> None:
    keys = torch.tensor([[-3e38, -2e-40, -1e-40, -3.1e38, -0.0, 0.0, -1.0, -1.0000001]])
    for k in range(1, 9):
        assert top_slots(keys, k).tolist() == [plain_top(keys[0].tolist(), k)]


def test_top_slots_leaves_nan_out_whatever_its_sign() -> None:
    nan = torch.tensor([0x7FC00000, -0x400000], dtype=torch.int32).view(torch.float32)
    assert nan.isnan().all()
    keys = torch.full((1, 300), -1.0)
    keys[0, :299] = -torch.inf
    keys[0, 3], keys[0, 150] = nan[0], nan[1]
    assert top_slots(keys, 2).tolist() == [[299, 300]] and top_slots(keys[:, :151], 1) == 151
    assert top_slots(keys[:, 295:], 7).tolist() == [[4, 5, 5, 5, 5]]


def test_log_sum_exp_of_nothing_is_finite() -> None:
    x = torch.randn(5, 9) * 20
    torch.testing.assert_close(log_sum_exp(x).squeeze(1), x.logsumexp(1))
    nothing = torch.full((2, 3), -torch.inf)
    assert (nothing - log_sum_exp(nothing) == -torch.inf).all()


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_nucleus_equals_plain_python(top_p: float) -> None:
    logits = torch.randn(20, 8) * 2
    logits[torch.rand(20, 8) < 0.3] = -torch.inf
    logits[0] = -torch.inf
    logits[1, 1:] = -torch.inf
    kept = nucleus(logits, top_p)
    for row, got in zip(logits.tolist(), kept.tolist(), strict=True):
        legal = [code for code, value in enumerate(row) if value > -math.inf]
        want = plain_nucleus(row, legal, top_p) if legal else []
        assert [code for code, value in enumerate(got) if value > -math.inf] == want
        assert all(got[code] == row[code] for code in want)


def test_perturbed_children_have_their_parent_as_maximum() -> None:
    log_q = torch.randn(4, 5, 7) * 3
    log_q[torch.rand(4, 5, 7) < 0.3] = -torch.inf
    log_q[0, 0] = -torch.inf
    parents = torch.randn(4, 5)
    parents[0, 0] = -torch.inf
    moved = perturb(log_q, parents, torch.Generator().manual_seed(0))
    assert ((moved == -torch.inf) == (log_q == -torch.inf)).all() and not moved.isnan().any()
    torch.testing.assert_close(moved.amax(2), parents, atol=1e-5, rtol=1e-5)
