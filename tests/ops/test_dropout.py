# SPDX-License-Identifier: Apache-2.0
"""Hashed dropout: one word against plain Python, statistics, and that only the seed decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tzgen.ops import native
from tzgen.ops.dropout import draw_seed, dropout, keep_mask, keep_scale
from tzgen.ops.dropout.mask import threshold

CPU = torch.device("cpu")
SEED = 0x1234_5678_9ABC_DEF0


def mix(word: int) -> int:
    word ^= word >> 16
    word = word * 0x21F0AAAD % 2**32
    word ^= word >> 15
    word = word * 0xD35A2D97 % 2**32
    return word ^ (word >> 15)


def plain_mask(seed: int, first: int, rows: int, columns: int, ratio: float) -> torch.Tensor:
    low, high = seed % 2**32, seed >> 32
    keys = [mix(mix(low ^ row) ^ high) for row in range(first, first + rows)]
    kept = [
        [
            mix(key ^ (column * 0x9E3779B9 % 2**32)) >= round(ratio * 2**32)
            for column in range(columns)
        ]
        for key in keys
    ]
    return torch.tensor(kept)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9])
def test_mask_is_the_documented_hash(ratio: float) -> None:
    want = plain_mask(SEED, 70_000, 9, 37, ratio)
    assert torch.equal(keep_mask(SEED, 70_000, 9, 37, ratio, CPU), want)


def test_native_mask_is_the_same() -> None:
    if not native.available():
        pytest.skip("needs a C++ compiler")
    x = torch.randn(33, 53)
    got = torch.ops.tzgen_native.dropout(x, SEED, 0.3)
    want = x * keep_mask(SEED, 0, 33, 53, 0.3, CPU) * keep_scale(0.3)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


def test_share_and_independence() -> None:
    """Counts of kept elements, of rows, columns, neighbours and two seeds, within 4 sigma."""
    ratio, rows, columns = 0.2, 2000, 300
    mask = keep_mask(SEED, 0, rows, columns, ratio, CPU).numpy().astype(np.float64)
    other = keep_mask(SEED + 1, 0, rows, columns, ratio, CPU).numpy().astype(np.float64)
    sigma = (ratio * (1 - ratio)) ** 0.5
    assert abs(mask.mean() - (1 - ratio)) < 4 * sigma / mask.size**0.5
    assert abs(mask.mean(1) - (1 - ratio)).max() < 5 * sigma / columns**0.5
    assert abs(mask.mean(0) - (1 - ratio)).max() < 5 * sigma / rows**0.5
    centred, shifted = mask - mask.mean(), other - other.mean()
    for pair in (
        (centred[:, 1:], centred[:, :-1]),
        (centred[1:], centred[:-1]),
        (centred, shifted),
    ):
        assert abs((pair[0] * pair[1]).mean()) < 4 * sigma**2 / pair[0].size ** 0.5
    # the spread over rows is that of independent draws
    assert mask.mean(1).std() == pytest.approx(sigma / columns**0.5, rel=0.1)


def test_scale_keeps_the_mean() -> None:
    assert keep_scale(0.25) == pytest.approx(4 / 3)
    assert threshold(0.5) == 2**31 and threshold(1 - 1e-12) == 2**32 - 1
    y = dropout(torch.ones(500, 400), 0.3, training=True)
    assert y.mean().item() == pytest.approx(1.0, abs=4 * (0.3 / 0.7 / y.numel()) ** 0.5)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.7])


def test_seed_comes_from_torchs_generator() -> None:
    torch.manual_seed(3)
    first, second = draw_seed(), draw_seed()
    torch.manual_seed(3)
    assert torch.equal(draw_seed(), first) and not torch.equal(first, second)
    assert first.dtype == torch.int64 and first.device == CPU
    x = torch.randn(40, 30)
    torch.manual_seed(3)
    one = dropout(x, 0.4, training=True)
    another = dropout(x, 0.4, training=True)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.4, training=True), one)
    assert not torch.equal(one, another)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 7), (4,), (0, 3)])
def test_backward_drops_what_forward_dropped(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype).requires_grad_()
    y = dropout(x, 0.5, training=True)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, torch.where(y != 0, 2.0, 0.0).to(dtype))


def test_off() -> None:
    x = torch.randn(3, 4)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x
    with pytest.raises(ValueError, match="ratio"):
        dropout(x, 1.0, training=True)


def test_op_is_well_formed() -> None:
    seed = torch.tensor(SEED)
    for x in (torch.randn(3, 4, requires_grad=True), torch.randn(0, 4)):
        torch.library.opcheck(torch.ops.tzgen.dropout.default, (x, seed, 0.3))
