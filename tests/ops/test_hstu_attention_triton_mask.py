# SPDX-License-Identifier: Apache-2.0
"""The mask on the device against `mask.visible`, and the tiles of the kernels against the mask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import triton_runs as runs
from attention_cases import SPECS
from interpreted import Run, interpreter

from tzgen.ops.hstu_attention import MaskSpec, dense_mask

MORE = [
    pytest.param(MaskSpec(contextual_len=1), id="one contextual"),
    pytest.param(MaskSpec(3, 4, append_stable=True), id="stable window"),
    pytest.param(MaskSpec(2, 4, timestamp_mask=True), id="mtgr window"),
    pytest.param(MaskSpec(sla_k2=5), id="global only"),
    pytest.param(MaskSpec(contextual_len=2, sla_k1=2), id="local only"),
    pytest.param(MaskSpec(max_attn_len=3, full_attn_tail=20), id="all tail"),
]
PAD = 16


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Run]:
    with interpreter() as run:
        yield run


@pytest.mark.parametrize("spec", [*SPECS, *MORE])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("block", [3, 5])
def test_tiles_cover_the_mask(
    spec: MaskSpec, block: int, device: str, request: pytest.FixtureRequest
) -> None:
    """Each visible pair counts once and no other does, but a target's own, which is added apart."""
    low = spec.contextual_len
    rows = [(n, t) for n in (7, 13) for t in (0, 2, n - low) if t <= n - low]
    times = torch.tensor([10 * (i // 2) for i in range(PAD)], dtype=torch.int64)
    times[5] = 3  # unsorted
    if device == "cuda":
        found = runs.probe(spec, rows, times.cuda(), block, PAD)
    else:
        interpret = request.getfixturevalue("interpreted")
        found = interpret(runs.probe, spec, rows, times, block, PAD)
    for (length, targets), (seen, by_query, by_key) in zip(rows, found, strict=True):
        mask = dense_mask(length, targets, spec, times[:length])
        assert torch.equal(seen.bool(), mask), (length, targets)
        own = torch.arange(length) >= length - targets
        expected = mask & ~torch.diag(own)
        for name, counts in (("queries", by_query), ("keys", by_key)):
            where = (name, length, targets)
            ours = counts[:, : length - targets]  # what is left of other columns is not stored
            assert torch.equal((ours > 0), expected[:, : length - targets]), where
            assert ((ours == 0) | (ours == 1) | (ours == 100)).all(), f"twice: {where}"
            if name == "queries":
                assert not counts[:, length - targets :].any(), where


def test_most_tiles_of_a_long_row_need_no_mask(interpreted: Run) -> None:
    times = torch.zeros(64, dtype=torch.int64)
    [(_, by_query, by_key)] = interpreted(runs.probe, MaskSpec(), [(64, 16)], times, 8, 64)
    for counts in (by_query, by_key):
        # 48 events in 6 tiles: 15 whole tiles below the diagonal, and 2 x 6 of targets
        assert (counts == 100).sum() == (15 + 12) * 64
