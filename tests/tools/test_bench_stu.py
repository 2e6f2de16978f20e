# SPDX-License-Identifier: Apache-2.0
"""The layer benchmark: its baseline is the layer, its memory grows with tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import bench_stu as bench
import peak_memory
import pytest
import torch

from tzgen.config.options import options
from tzgen.modules.stu_options import STUOptions
from tzgen.protos import module_pb2

needs_linux = pytest.mark.skipif(not peak_memory.measurable(), reason="needs Linux's /proc")


def test_options_are_the_defaults_of_the_schema() -> None:
    message = module_pb2.STU(
        embedding_dim=64, num_heads=4, hidden_dim=16, attention_dim=16, output_dropout_ratio=0.1
    )
    want = options(STUOptions, message)
    got = bench.options(64, contextual_seq_len=want.contextual_seq_len)
    assert got == replace(want, output_dropout_ratio=0.1)  # the schema's is a float32


def test_the_baseline_is_the_layer() -> None:
    assert bench.check_equal((3, 50, 32)) < 1e-5


def test_the_baseline_of_a_gpu_shares_the_attention() -> None:
    batch = bench.make_batch((3, 30, 16), "cpu", torch.float32)
    layers = bench.make_layers(16, 30, "cpu", torch.float32, "AUTO", output_dropout_ratio=0.0)
    got = bench.step(layers, batch, bench.plain(layers, batch, padded=False))()
    want = bench.step(layers, batch, bench.plain(layers, batch, padded=True))()
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_work_of_one_row_by_hand() -> None:
    """3 history tokens and a target, D 8: 14 D^2 multiply-adds' worth, 6 + 4 visible pairs."""
    batch = bench.Batch(
        torch.zeros(4, 8), torch.zeros(4, 8), torch.tensor([0, 4]), torch.tensor([1]), 4
    )
    flops, moved = bench.flops_and_bytes(batch, 8, 4)
    assert flops == 2 * (3 * 4 * 14 * 64 + 3.5 * 10 * 4 * 8)
    assert moved == 2 * 4 * 8 * 4 * 43


def test_prints_ratios_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads, out = torch.get_num_threads(), tmp_path / "times.json"
    flags = ["--shapes", "2,24,16", "--pairs", "3", "--threads", "1", "--no_memory"]
    bench.main([*flags, "--json", str(out)])
    torch.set_num_threads(threads)
    assert "fused, uvqk recomputed" in capsys.readouterr().out
    records = json.loads(out.read_text())["records"]
    assert records[0]["name"] == "plain" and records[0]["wall"] == [1.0, 1.0, 1.0]
    assert all(record["ms"] > 0 for record in records)


@needs_linux
def test_the_square_tensors_of_the_baseline_are_seen() -> None:
    """Also after this process held more than they are."""
    high = bytearray(b"1") * (200 << 20)
    del high
    square = 2 * bench.HEADS * 512 * 512 * 4
    assert 3 * square < bench.peak_bytes("plain", 512, 64)


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize("name", ["fused", "pure torch"])
def test_memory_grows_with_tokens_not_with_their_square(name: str) -> None:
    small, middle, large = (bench.peak_bytes(name, longest, 64) for longest in (2048, 4096, 8192))
    assert large - middle < 2.2 * (middle - small), (small, middle, large)


def test_the_table_says_what_a_token_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MEMORY", (1024, 2048, 4096))
    monkeypatch.setattr(bench, "peak_bytes", lambda name, n, dim: (5 << 20) + 2 * n * 4096)
    _, *lines = bench.memory_table(64).splitlines()
    assert [line.split()[2] for line in lines] == ["6.5", "4.0", "4.0"]
    assert lines[2].split() == ["4096", "37", "4.0", "37", "4.0", "-", "-"]
