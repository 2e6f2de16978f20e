# SPDX-License-Identifier: Apache-2.0
"""Bytes by hand, where limits are read, and the refusal that lists tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from embedding_world import FEATURES, parse_groups

from tzgen.embeddings import EmbeddingGroup, OptimizerSpec, memory, sparse_optimizer
from tzgen.embeddings.memory import available_bytes, check_memory, table_bytes
from tzgen.errors import UserError
from tzgen.features.tables import TableSpec

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "state"),
    [("sgd", 0), ("adagrad", 8), ("rowwise_adagrad", 1), ("adam", 16), ("partial_rowwise_adam", 9)],
)
def test_bytes(name: str, state: int) -> None:
    spec = OptimizerSpec(name, 0.1)
    assert table_bytes(TableSpec("t", 10, 8), spec) == 10 * (8 + state) * 4
    assert table_bytes(TableSpec("t", 10, 8), spec, weights=False) == 10 * state * 4
    assert table_bytes(TableSpec("t", 10, 8, data_type="FP16"), None) == 10 * 8 * 2
    assert table_bytes(TableSpec("t", 10, 8, trainable=False), spec) == 10 * 8 * 4


def test_the_smallest_limit_counts(tmp_path: Path) -> None:
    def put(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    put("proc/meminfo", "MemTotal: 2000 kB\nMemAvailable: 1000 kB\n")
    assert available_bytes(CPU, tmp_path) == 1000 * 1024
    put("sys/fs/cgroup/memory.max", "max\n")
    put("sys/fs/cgroup/memory.current", "100\n")
    assert available_bytes(CPU, tmp_path) == 1000 * 1024
    put("sys/fs/cgroup/memory.max", "5000\n")
    put("sys/fs/cgroup/memory.stat", "anon 50\ninactive_file 30\n")
    assert available_bytes(CPU, tmp_path) == 5000 - (100 - 30)
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "4000")
    put("sys/fs/cgroup/memory/memory.usage_in_bytes", "3500")
    assert available_bytes(CPU, tmp_path) == 500


def test_refused_with_the_sum_and_the_largest_first() -> None:
    tables = [TableSpec(f"t{i}", 1000 * (i + 1), 8) for i in range(14)]
    total = check_memory(tables, None, device=CPU, available=2**40)
    assert total == 105 * 1000 * 32
    with pytest.raises(UserError) as caught:
        check_memory(tables, OptimizerSpec("adagrad", 0.1), device=CPU, available=total)
    lines = str(caught.value).splitlines()
    assert "6.4 MiB" in lines[0] and "weights and optimizer state" in lines[0]
    assert lines[1].strip() == "t13: 875.0 KiB" and "2 more" in lines[13]
    assert check_memory(tables, None, device=CPU, available=total) == total


def test_ranks_share_a_host() -> None:
    tables = [TableSpec("t", 1000, 8)]
    assert (
        check_memory(tables, None, device=CPU, ranks_sharing=2, world_size=8, available=9000)
        == 8000
    )
    with pytest.raises(UserError, match="2 of 8 shares"):
        check_memory(tables, None, device=CPU, ranks_sharing=2, world_size=8, available=7999)


def test_groups_and_optimizers_ask_before_they_allocate(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = parse_groups('feature_groups { group_name: "g" feature_names: "user_id" }')
    small = EmbeddingGroup(FEATURES, groups, engine="local")
    monkeypatch.setattr(memory, "available_bytes", lambda device: 30 * 8 * 4 - 1)
    with pytest.raises(UserError, match=r"user_emb: 960 B"):
        EmbeddingGroup(FEATURES, groups, engine="local")
    with pytest.raises(UserError, match="optimizer state"):
        sparse_optimizer(small, OptimizerSpec("adam", 0.1))
