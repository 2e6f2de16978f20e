# SPDX-License-Identifier: Apache-2.0
"""Alone they change nothing; with two ranks they say what both have."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tzgen.modules.collectives import (
    first_row,
    from_first_rank,
    gather_rows,
    gather_with_gradient,
    grouped,
    of_all_ranks,
    sum_over_ranks,
)


def test_without_a_group_nothing_happens() -> None:
    x = torch.arange(6.0).view(3, 2)
    assert not grouped()
    for call in (sum_over_ranks, from_first_rank, gather_rows, gather_with_gradient):
        assert torch.equal(call(x), x)
    assert first_row(x) == 0
    assert of_all_ranks({"x": x}) == ({"x": x}, 0)


def _rank(rank: int, store: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    rows = torch.full((rank * 2, 3), float(rank))  # rank 0 has none
    found = {
        "sum": sum_over_ranks(torch.tensor([1.0 + rank])),
        "rows": gather_rows(rows),
        "first": from_first_rank(torch.tensor([7.0 + rank])),
        "start": torch.tensor(first_row(torch.zeros(rank + 1, 2))),
    }
    mine = torch.full((rank + 1, 2), 1.0 + rank, requires_grad=True)
    everybody = gather_with_gradient(mine)
    (everybody * torch.arange(1.0, 4.0).unsqueeze(1)).sum().backward()
    named, start = of_all_ranks({"a": mine.detach(), "b": -mine.detach()})
    found |= {"named": torch.cat([named["a"], named["b"]], dim=1), "named_start": start}
    found |= {"everybody": everybody.detach(), "gradient": mine.grad}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["sum"].item() == 3.0
        assert found["first"].item() == 7.0
        assert torch.equal(found["rows"], torch.ones(2, 3))
        assert found["start"] == rank
        assert found["everybody"][:, 0].tolist() == [1.0, 2.0, 2.0]
        assert found["named"][:, ::2].tolist() == [[1.0, -1.0], [2.0, -2.0], [2.0, -2.0]]
        assert found["named_start"] == rank
        # both ranks use all three rows: each gradient arrives twice
        weights = [[2.0]] if rank == 0 else [[4.0], [6.0]]
        assert torch.equal(found["gradient"], torch.tensor(weights).expand(-1, 2))
