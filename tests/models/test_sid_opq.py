# SPDX-License-Identifier: Apache-2.0
"""Product quantization as a model."""

from __future__ import annotations

import torch
from sid_world import items, problems_of, tokenizer

TEXT = "sid_opq { num_subvectors: 4 codebook_size: 8 rounds: 3 faiss_kmeans_kwargs { niter: 5 } }"


def test_codes_stand_for_vectors_near_the_items() -> None:
    model, x = tokenizer(TEXT, {"deep": (8,)}), items()
    model.observe({"deep": x})
    model.fit()
    outputs = model({"deep": x})
    assert outputs.decoded["codes"].shape == (300, 4)
    assert torch.equal(outputs.decoded["codes"], model.predict({"deep": x}).decoded["codes"])
    error = (outputs.tensors["decoded"] - x).square().sum() / x.square().sum()
    assert error < 0.2
    assert model.codebook == (8, 8, 8, 8)


def test_parts_must_divide_the_width() -> None:
    found = problems_of("sid_opq { num_subvectors: 3 }", {"deep": (8,)})
    assert len(found) == 1 and "a divisor of 8" in found[0]


def test_parts_have_no_length_of_one() -> None:
    found = problems_of("sid_opq { faiss_kmeans_kwargs { spherical: true } }", {"deep": (8,)})
    assert len(found) == 1 and "sid_opq.faiss_kmeans_kwargs.spherical: found true" in found[0]
