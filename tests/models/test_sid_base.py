# SPDX-License-Identifier: Apache-2.0
"""The sample that fits are made on, and what every tokenizer refuses."""

from __future__ import annotations

import pytest
import torch
from sid_world import GROUP, items, problems_of, tokenizer

from tzgen.errors import UserError
from tzgen.models.sid_base import FittedTokenizer, Sample


@pytest.mark.parametrize("sizes", [[5], [2, 3], [40], [7, 40, 1, 100]])
def test_a_sample_holds_everything_or_its_size(sizes: list[int]) -> None:
    sample, start = Sample(20, seed=1), 0
    for size in sizes:
        sample.add(torch.arange(start, start + size).float().unsqueeze(1))
        start += size
    rows = sample.rows().flatten().tolist()
    assert len(rows) == min(20, start)
    assert len(set(rows)) == len(rows) and all(0 <= row < start for row in rows)


def test_every_row_is_kept_alike_often() -> None:
    """20 of 100 rows in batches of 7, 400 times: each is kept 80 +- 8 times."""
    counts = torch.zeros(100)
    for seed in range(400):
        sample = Sample(20, seed=seed)
        for batch in torch.arange(100).float().unsqueeze(1).split(7):
            sample.add(batch)
        counts[sample.rows().flatten().long()] += 1
    assert counts.sum() == 400 * 20
    assert (counts - 80).abs().max() < 5 * 8
    assert abs(float(counts[:20].mean()) - 80) < 8  # the first are not favoured


@pytest.mark.parametrize("form", ["sid_rqkmeans { codebook: [2, 4] %s }",
                                  "sid_opq { num_subvectors: 2 codebook_size: 4 %s }"])  # fmt: skip
@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("", 4 * 256),
        ("faiss_kmeans_kwargs { max_points_per_centroid: 10 }", 40),
        ("train_sample_size: 7 faiss_kmeans_kwargs { max_points_per_centroid: 10 }", 7),
    ],
)
def test_a_fit_sees_as_many_items_as_it_says(form: str, given: str, size: int) -> None:
    model = tokenizer(form % given, {"deep": (8,)})
    for seed in range(4):
        model.observe({"deep": items(300, seed=seed)})
    assert isinstance(model, FittedTokenizer) and model.sample.rows().shape == (size, 8)


def test_no_rows_are_an_error() -> None:
    with pytest.raises(UserError, match="no item was seen"):
        Sample(3, seed=0).rows()


def test_the_group_must_be_clear_and_the_codebook_there() -> None:
    two = GROUP + GROUP.replace('"deep"', '"other"')
    widths = {"deep": (4,), "other": (4,)}
    assert any(
        "feature_group" in p for p in problems_of("sid_rqkmeans { codebook: 4 }", widths, two)
    )
    found = problems_of('sid_rqkmeans { codebook: 4 feature_group: "deep" }', widths, two)
    assert len(found) == 1 and "'other'" in found[0]
    assert any("codebook: found []" in p for p in problems_of("sid_rqkmeans {}", widths))
    assert any("codebook" in p for p in problems_of("sid_rqkmeans { codebook: [4, 0] }", widths))


def test_losses_and_metrics_belong_to_whom_they_belong() -> None:
    widths = {"deep": (4,)}
    fitted = problems_of("sid_rqkmeans { codebook: 4 } losses { recon_loss {} }", widths)
    assert any("fitted, not descended" in problem for problem in fitted)
    assert any("no losses" in p for p in problems_of("sid_rqvae { codebook: 4 }", widths))
    measured = problems_of("sid_rqkmeans { codebook: 4 } metrics { auc {} }", widths)
    assert any("metrics of its own" in problem for problem in measured)
