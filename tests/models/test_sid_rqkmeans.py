# SPDX-License-Identifier: Apache-2.0
"""Residual k-means as a model: fitted on what it saw, the same codes in forward and predict."""

from __future__ import annotations

import pytest
import torch
from sid_world import items, tokenizer

from tzgen.errors import UserError
from tzgen.modules.kmeans import nearest

TEXT = "sid_rqkmeans { codebook: [6, 4] faiss_kmeans_kwargs { niter: 8 seed: 3 } %s }"


@pytest.mark.parametrize("more", ["", "balanced: true", "normalize_residuals: true"])
def test_codes_are_those_of_the_fitted_centroids(more: str) -> None:
    model, x = tokenizer(TEXT % more, {"deep": (8,)}), items()
    for batch in x.split(64):
        model.observe({"deep": batch})
    model.fit()
    outputs = model({"deep": x})
    codes = outputs.decoded["codes"]
    assert torch.equal(codes, model.predict({"deep": x}).decoded["codes"])
    left = x / x.norm(dim=1, keepdim=True) if "normalize" in more else x
    assert torch.equal(codes[:, 0], nearest(left, model.quantizer.codebooks[0].data)[0])
    error = (outputs.tensors["decoded"] - x).square().sum() / x.square().sum()
    assert error < 0.35
    assert not any(p.requires_grad for p in model.parameters())


def test_the_fit_is_repeatable_and_needs_items() -> None:
    found = []
    for _ in range(2):
        model = tokenizer(TEXT % "train_sample_size: 100", {"deep": (8,)})
        for batch in items().split(50):
            model.observe({"deep": batch})
        model.fit()
        found.append(model.predict({"deep": items(seed=5)}).decoded["codes"])
    assert torch.equal(found[0], found[1])
    with pytest.raises(UserError, match="no item was seen"):
        tokenizer(TEXT % "", {"deep": (8,)}).fit()


def test_vectors_that_are_not_numbers_are_refused() -> None:
    model, x = tokenizer(TEXT % "", {"deep": (8,)}), items(50)
    x[7, 2] = torch.nan
    model.observe({"deep": x})
    with pytest.raises(UserError, match="point 7"):
        model.fit()


def test_a_catalogue_smaller_than_a_codebook_is_refused() -> None:
    model = tokenizer("sid_rqkmeans { codebook: 60 }", {"deep": (8,)})
    model.observe({"deep": items(50)})
    with pytest.raises(UserError, match=r"sid_rqkmeans\.codebook: .*50 points for 60 centroids"):
        model.fit()
