# SPDX-License-Identifier: Apache-2.0
"""Sorting against Python's, with one key and with several."""

from __future__ import annotations

import pytest
import torch

from tzgen.decoding.order import KEY_BITS, keys_of, sort_codes


@pytest.mark.parametrize("sizes", [(3, 2), (1, 4, 1), (1 << 40, 1 << 40), (1 << 62, 2, 1 << 33)])
def test_order_and_prefixes_equal_sorting(sizes: tuple[int, ...]) -> None:
    columns = [torch.randint(max(0, size - 3), size, (60,)) for size in sizes]
    codes = torch.stack(columns, 1)
    rows = [tuple(row) for row in codes.tolist()]
    found = sort_codes(codes, sizes)
    assert found.order.tolist() == sorted(range(60), key=lambda row: (rows[row], row))
    ordered = sorted(rows)
    for depth, (starts, tokens) in enumerate(found.levels()):
        prefixes = sorted({row[: depth + 1] for row in rows})
        assert [ordered[start][: depth + 1] for start in starts.tolist()] == prefixes
        assert tokens.tolist() == [prefix[-1] for prefix in prefixes]
        firsts = [ordered.index(next(r for r in ordered if r[: depth + 1] == p)) for p in prefixes]
        assert starts.tolist() == firsts


def test_as_few_keys_as_fit() -> None:
    assert len(keys_of([256] * 7)) == 1 and len(keys_of([256] * 8)) == 2
    keys = keys_of([8192] * 5)
    assert [key.first for key in keys] == [0, 4] and keys[0].shifts == (39, 26, 13, 0)
    assert keys_of([1, 2, 3])[0].bits == (1, 1, 2)
    assert all(sum(key.bits) <= KEY_BITS for key in keys_of([1 << 31, 1 << 31, 2, 1 << 62]))
