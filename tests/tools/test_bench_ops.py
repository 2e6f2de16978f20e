# SPDX-License-Identifier: Apache-2.0
"""The op benchmark: work counted by hand, every op runs, the record says it all."""

from __future__ import annotations

import json
from pathlib import Path

import bench_ops as bench
import pytest
import torch

SHAPE = bench.Shape(2, 12, 4, "full", 3)


def test_work_by_hand() -> None:
    """Rows of 12 history tokens and 3 targets, 4 heads of 4: 78 + 3 x 13 pairs a row."""
    attention = bench.attention(SHAPE, "cpu", torch.float32)
    assert attention.flops == 2 * (78 + 39) * 2 * (4 + 4) * 4
    assert attention.bytes == 4 * (30 * 16 * 4)
    assert bench.projection(SHAPE, "cpu", torch.float32).flops == 2 * 30 * 16 * 64
    assert bench.output(SHAPE, "cpu", torch.float32).flops == 2 * 30 * 48 * 16
    assert bench.row_maps(SHAPE, "cpu", torch.float32).flops == 2 * 30 * 4 * 4


@pytest.mark.parametrize("name", ["hstu_attention", "stu_input", "jagged_dense_bmm"])
def test_ours_is_the_reference(name: str) -> None:
    torch.manual_seed(0)
    problem = bench.BUILD[name](SHAPE, "cpu", torch.float32)
    assert problem.reference is not None
    got, want = problem.ours(*problem.leaves), problem.reference(*problem.leaves)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_grid() -> None:
    class Asked:
        device, sizes, lengths, targets = "cuda", None, None, None

    shapes = bench.grid(Asked())  # type: ignore[arg-type]
    assert {s.rows for s in shapes} == {32, 128} and {s.width for s in shapes} == {64, 128}
    assert {s.targets for s in shapes} == {0, 20, 2048} and max(s.longest for s in shapes) == 8192
    Asked.device, Asked.sizes = "cpu", ["2,8,4"]
    assert str(bench.grid(Asked())[0]) == "2,8,4 uniform +0"  # type: ignore[arg-type]


def test_every_op_runs_and_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads, out = torch.get_num_threads(), tmp_path / "ops.json"
    bench.main(["--sizes", "2,16,4", "--pairs", "2", "--threads", "1", "--json", str(out)])
    torch.set_num_threads(threads)
    assert "x softmax" in capsys.readouterr().out
    record = json.loads(out.read_text())
    assert {one["op"] for one in record["records"]} == set(bench.OPS)
    assert {one["pass"] for one in record["records"]} == {"fwd", "fwd+bwd"}
    assert record["machine"]["gemm_tflops"] > 0
    forward = next(one for one in record["records"] if one["op"] == "hstu_attention")
    assert len(forward["softmax"]) == 3 and forward["reference"][0] > 0
