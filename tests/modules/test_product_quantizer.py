# SPDX-License-Identifier: Apache-2.0
"""Product quantization: a rotation that pays where dimensions are tied together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tzgen.modules.kmeans import KMeansOptions
from tzgen.modules.product_quantizer import opq_rotation, product_codes


def tied(n: int = 600) -> Tensor:
    """Eight dimensions that depend on three, mixed."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, 3, generator=generator)
    mix = torch.randn(3, 8, generator=generator)
    return hidden @ mix + 0.05 * torch.randn(n, 8, generator=generator)


def error(x: Tensor, rotation: Tensor, books: Tensor) -> float:
    codes = product_codes(x, rotation, books)
    decoded = torch.cat([books[p][codes[:, p]] for p in range(books.size(0))], 1) @ rotation.t()
    return float((x - decoded).square().sum(1).mean())


def test_the_rotation_is_orthogonal_and_beats_none() -> None:
    x = tied()
    rotation, books = opq_rotation(x, parts=4, size=8, options=KMeansOptions())
    torch.testing.assert_close(rotation @ rotation.t(), torch.eye(8), rtol=1e-4, atol=1e-4)
    assert books.shape == (4, 8, 2)
    plain_books = opq_rotation(x, parts=4, size=8, options=KMeansOptions(), rounds=1)[1]
    assert plain_books.shape == books.shape
    from tzgen.modules.kmeans import kmeans

    unrotated = torch.stack(
        [kmeans(x[:, 2 * p : 2 * p + 2], 8, KMeansOptions()).centroids for p in range(4)]
    )
    assert error(x, rotation, books) < 0.9 * error(x, torch.eye(8), unrotated)


def test_codes_are_the_nearest_of_each_part() -> None:
    x = tied(50)
    rotation, books = opq_rotation(x, parts=2, size=4, options=KMeansOptions())
    codes = product_codes(x, rotation, books)
    for part in range(2):
        turned = (x @ rotation)[:, 4 * part : 4 * part + 4]
        assert torch.equal(codes[:, part], torch.cdist(turned, books[part]).argmin(1))


def test_autocast_changes_no_code() -> None:
    x = tied(400) + 5.0
    rotation, books = opq_rotation(x, parts=2, size=32, options=KMeansOptions(niter=4), rounds=2)
    alone = product_codes(x, rotation, books)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(product_codes(x, rotation, books), alone)


def test_parts_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="3 sub-vectors of 8"):
        opq_rotation(tied(), parts=3, size=4, options=KMeansOptions())
