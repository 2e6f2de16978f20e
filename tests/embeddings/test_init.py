# SPDX-License-Identifier: Apache-2.0
"""Initial weights depend on (seed, table, row) alone, and are what torch.nn.init would draw."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tzgen.embeddings import init
from tzgen.embeddings.init import fill_table, init_problem
from tzgen.features.tables import TableSpec


def drawn(table: TableSpec, seed: int = 1) -> Tensor:
    out = torch.empty(table.num_embeddings, table.embedding_dim)
    fill_table(out, table, seed)
    return out


def test_shards_hold_the_rows_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "BLOCK_VALUES", 40)  # blocks of 5 rows
    table = TableSpec("t", 23, 8, init_fn="nn.init.normal_,std=0.5")
    whole = drawn(table)
    for row, rows, column, columns in ((0, 23, 0, 8), (3, 9, 0, 8), (5, 5, 4, 4), (22, 1, 7, 1)):
        shard = torch.empty(rows, columns)
        fill_table(shard, table, 1, row, column)
        assert torch.equal(shard, whole[row : row + rows, column : column + columns])


def test_seed_and_name_change_the_numbers() -> None:
    whole = drawn(TableSpec("t", 23, 8))
    assert torch.equal(whole, drawn(TableSpec("t", 23, 8)))
    assert not torch.equal(whole, drawn(TableSpec("u", 23, 8)))
    assert not torch.equal(whole, drawn(TableSpec("t", 23, 8), seed=2))


def test_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    drawn(TableSpec("t", 23, 8))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("text", "mean", "std", "bound"),
    [
        ("", 0.0, 1 / math.sqrt(3 * 2000), 1 / math.sqrt(2000)),
        ("nn.init.uniform_,a=-0.2,b=0.6", 0.2, 0.8 / math.sqrt(12), 0.6),
        ("nn.init.normal_,mean=1,std=0.5", 1.0, 0.5, math.inf),
        ("nn.init.trunc_normal_,std=1,a=-1,b=1", 0.0, 0.5396, 1.0),
        ("nn.init.xavier_uniform_", 0.0, math.sqrt(2 / 2064), math.sqrt(6 / 2064)),
        ("nn.init.xavier_normal_,gain=2", 0.0, 2 * math.sqrt(2 / 2064), math.inf),
        ("nn.init.kaiming_uniform_,a=1", 0.0, math.sqrt(1 / 64), math.sqrt(3 / 64)),
        ("nn.init.kaiming_normal_", 0.0, math.sqrt(2 / 64), math.inf),
        ("nn.init.constant_,val=0.25", 0.25, 0.0, 0.25),
        ("nn.init.zeros_", 0.0, 0.0, 0.0),
        ("nn.init.ones_", 1.0, 0.0, 1.0),
    ],
)
def test_distributions(text: str, mean: float, std: float, bound: float) -> None:
    out = drawn(TableSpec("t", 2000, 64, init_fn=text))
    scale = max(std, 1e-6)
    assert abs(float(out.mean()) - mean) < 5 * scale / math.sqrt(out.numel())
    assert abs(float(out.std()) - std) < 0.01 * scale
    assert float(out.abs().max()) <= bound * (1 + 1e-6)


def test_unknown_names_are_refused() -> None:
    assert init_problem("") is None and init_problem("nn.init.zeros_") is None
    assert "unknown name" in (init_problem("os.system") or "")
    assert "no argument" in (init_problem("nn.init.uniform_,c=1") or "")
