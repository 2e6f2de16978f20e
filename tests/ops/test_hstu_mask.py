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
    MaskSpec(sla_k1=1),
    MaskSpec(sla_k1=4),
    MaskSpec(sla_k2=3),
    MaskSpec(sla_k1=3, sla_k2=2),
    MaskSpec(contextual_len=3, sla_k1=2, sla_k2=1),
    MaskSpec(contextual_len=2, sla_k1=3, sla_k2=5),
    MaskSpec(max_attn_len=2, full_attn_tail=3),
    MaskSpec(contextual_len=2, max_attn_len=3, full_attn_tail=4),
    MaskSpec(2, 2, window_keeps_contextual=False, full_attn_tail=1),
    MaskSpec(contextual_len=2, timestamp_mask=True, max_attn_len=3, full_attn_tail=2),
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
            sla=(spec.sla_k1, spec.sla_k2),
            tail=spec.full_attn_tail,
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


def seen_by(mask: torch.Tensor, row: int) -> list[int]:
    return mask[row].nonzero().flatten().tolist()


def test_semi_local_attention_sees_the_first_and_the_last_tokens() -> None:
    mask = dense_mask(10, 2, MaskSpec(contextual_len=1, sla_k1=3, sla_k2=2))
    assert seen_by(mask, 0) == [0]
    assert seen_by(mask, 7) == [0, 1, 5, 6, 7]
    assert seen_by(mask, 9) == [*range(8), 9]  # targets: the whole history


def test_the_tail_and_targets_ignore_the_window() -> None:
    mask = dense_mask(9, 1, MaskSpec(max_attn_len=1, full_attn_tail=2))
    assert seen_by(mask, 5) == [4, 5]
    assert seen_by(mask, 6) == list(range(7))
    assert seen_by(mask, 8) == [*range(8), 8]
    window_only = dense_mask(9, 1, MaskSpec(max_attn_len=1))
    assert seen_by(window_only, 8) == [7, 8]


def test_semi_local_attention_skips_what_nobody_sees() -> None:
    cut = blocks(1000, 0, MaskSpec(sla_k1=100, sla_k2=10), rows=256, keys=1024)
    assert [(s.start, s.stop, s.full) for s in cut[2].spans] == [
        (0, 10, True),
        (512 - 99, 512, False),
        (512, 768, False),
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sla_k1": 4, "max_attn_len": 3}, "does not combine"),
        ({"sla_k2": 4, "timestamp_mask": True}, "does not combine"),
        ({"full_attn_tail": 4}, "set max_attn_len too"),
    ],
    ids=["window", "time", "tail alone"],
)
def test_refuses_masks_that_contradict(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskSpec(**fields)  # type: ignore[arg-type]


def test_timestamp_mask_without_times_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the timestamps"):
        dense_mask(3, 1, MaskSpec(timestamp_mask=True))
