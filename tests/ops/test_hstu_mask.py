# SPDX-License-Identifier: Apache-2.0
"""The mask against loops over pairs, and the tiling against the mask, for all short rows."""

from __future__ import annotations

import itertools

import pytest
import torch
from dense_hstu import pair_mask

from tzgen.ops.hstu_attention.mask import MaskSpec, blocks, dense_mask

SPECS = [
    MaskSpec(),
    MaskSpec(contextual_len=1),
    MaskSpec(contextual_len=3),
    MaskSpec(contextual_len=3, append_stable=True),
    MaskSpec(max_attn_len=1),
    MaskSpec(max_attn_len=4),
    MaskSpec(contextual_len=2, max_attn_len=3),
    MaskSpec(contextual_len=2, max_attn_len=3, window_keeps_contextual=False),
    MaskSpec(contextual_len=1, max_attn_len=3, append_stable=True),
    MaskSpec(timestamp_mask=True),
    MaskSpec(contextual_len=2, timestamp_mask=True),
    MaskSpec(contextual_len=2, timestamp_mask=True, realtime_len=3),
    MaskSpec(contextual_len=2, timestamp_mask=True, max_attn_len=4),
]


def rows(spec: MaskSpec) -> list[tuple[int, int]]:
    """(length, targets) of every short row that the spec allows."""
    start = spec.contextual_len
    return [(n, t) for n in range(start, 13) for t in (0, 1, 2, n - start) if t <= n - start]


def times_of(length: int) -> list[int]:
    """Ascending with ties, and one step back: unsorted data must not leak either."""
    times = [10 * (i // 2) for i in range(length)]
    if length > 6:
        times[5] = 3
    return times


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_mask_is_the_specification(spec: MaskSpec) -> None:
    for length, targets in rows(spec):
        times = times_of(length) if spec.timestamp_mask else None
        want = pair_mask(
            length,
            targets=targets,
            contextual=spec.contextual_len,
            window=spec.max_attn_len,
            keeps_contextual=spec.window_keeps_contextual,
            stable=spec.append_stable,
            times=times,
            realtime=spec.realtime_len,
        )
        given = None if times is None else torch.tensor(times, dtype=torch.int64)
        got = dense_mask(length, targets, spec, given)
        assert torch.equal(got, want), (length, targets)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_blocks_cover_the_mask_and_full_means_full(spec: MaskSpec) -> None:
    for (length, targets), size in itertools.product(rows(spec), (1, 3, 5, 64)):
        times = torch.tensor(times_of(length), dtype=torch.int64) if spec.timestamp_mask else None
        mask = dense_mask(length, targets, spec, times)
        covered = torch.zeros(length, length, dtype=torch.int64)
        for block in blocks(length, targets, spec, rows=size, keys=size + 1):
            at = slice(block.start, block.stop)
            for span in block.spans:
                assert span.stop - span.start <= size + 1
                covered[at, span.start : span.stop] += 1
                if span.full:
                    assert mask[at, span.start : span.stop].all(), (length, targets, block, span)
            if block.own_key:
                covered[at, at] += torch.eye(block.stop - block.start, dtype=torch.int64)
        assert (covered <= 1).all(), "a pair counts twice"
        assert (covered[mask] == 1).all(), "a visible pair is left out"


def test_causal_tiles_below_the_diagonal_need_no_mask() -> None:
    cut = blocks(1000, 10, MaskSpec(), rows=256, keys=1024)
    assert [(s.start, s.stop, s.full) for s in cut[1].spans] == [(0, 256, True), (256, 512, False)]
    window = blocks(1000, 10, MaskSpec(max_attn_len=100), rows=256, keys=1024)
    assert min(span.start for span in window[3].spans) == 768 - 100


def test_targets_see_history_and_themselves_only() -> None:
    mask = dense_mask(6, 2, MaskSpec())
    assert mask[4].tolist() == [True, True, True, True, True, False]
    assert mask[5].tolist() == [True, True, True, True, False, True]


def test_contextual_prefix_survives_the_window_unless_told_otherwise() -> None:
    keeps = dense_mask(9, 0, MaskSpec(contextual_len=2, max_attn_len=2))
    loses = dense_mask(9, 0, MaskSpec(2, 2, window_keeps_contextual=False))
    assert keeps[8].nonzero().flatten().tolist() == [0, 1, 6, 7, 8]
    assert loses[8].nonzero().flatten().tolist() == [6, 7, 8]


def test_timestamp_mask_without_times_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the timestamps"):
        dense_mask(3, 1, MaskSpec(timestamp_mask=True))
