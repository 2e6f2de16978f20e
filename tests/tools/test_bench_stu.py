# SPDX-License-Identifier: Apache-2.0
"""The layer benchmark: its baseline is the layer, its memory grows with tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import bench_stu as bench
import pytest
import torch

from tzgen.config.options import options
from tzgen.modules.stu_options import STUOptions
from tzgen.protos import module_pb2


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


@pytest.mark.slow
def test_memory_grows_with_tokens_not_with_their_square() -> None:
    short, long = (bench.peak_bytes("fused", longest, 64) for longest in (2048, 8192))
    assert long < 5.5 * short
