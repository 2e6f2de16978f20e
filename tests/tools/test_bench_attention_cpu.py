# SPDX-License-Identifier: Apache-2.0
"""The attention benchmark: its dense form is the attention, its interval is that of the median."""

from __future__ import annotations

import json
from pathlib import Path

import bench_attention_cpu as bench
import peak_memory
import pytest
import torch

from tzgen.ops.hstu_attention import MaskSpec, hstu_attention_reference

needs_linux = pytest.mark.skipif(not peak_memory.measurable(), reason="needs Linux's /proc")


def test_the_dense_form_is_the_attention() -> None:
    inputs = bench.make_inputs((3, 40, 2, 8))
    want = hstu_attention_reference(
        inputs.q,
        inputs.k,
        inputs.v,
        inputs.offsets,
        alpha=8**-0.5,
        divisor=40.0,
        mask=MaskSpec(),
        num_targets=inputs.targets,
    )
    got = bench.dense(inputs)(inputs.q, inputs.k, inputs.v)
    torch.testing.assert_close(got, want)


def test_lengths_are_between_a_quarter_and_all_of_n() -> None:
    lengths = bench.make_inputs((200, 40, 1, 1)).offsets.diff()
    assert int(lengths.min()) == 10 and int(lengths.max()) == 40


@pytest.mark.parametrize(("count", "low"), [(15, 3), (31, 9), (5, 0)])
def test_interval_of_the_median(count: int, low: int) -> None:
    """Of 15 values the 4th and the 12th enclose the median with 96.5 %: a table of the binomial."""
    values = [float(v) for v in range(count)][::-1]
    assert bench.median(values) == ((count - 1) / 2, float(low), float(count - 1 - low))


def test_prints_ratios_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    out = tmp_path / "times.json"
    flags = ["--shape", "2,24,1,4", "--pairs", "3", "--threads", "1", "--no_memory"]
    bench.main([*flags, "--json", str(out)])
    torch.set_num_threads(threads)
    assert "CPU_TORCH" in capsys.readouterr().out
    times = json.loads(out.read_text())["times"]
    assert {one["kernel"] for one in times} == set(bench.kernels_here())
    assert all(one["error"] < 1e-5 and one["wall"][0] > 0 for one in times)


@needs_linux
def test_the_square_tensors_of_the_dense_form_are_seen() -> None:
    """Also after this process held more than they are."""
    high = bytearray(b"1") * (200 << 20)
    del high
    square = 2 * 4 * 512 * 512 * 4
    assert 3 * square < bench.peak_bytes("dense", 512) < 12 * square


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize("kernel", bench.KERNELS)
def test_memory_grows_with_tokens_not_with_their_square(kernel: str) -> None:
    if kernel not in bench.kernels_here():
        pytest.skip("needs a C++ compiler")
    lengths = (2048, 4096, 8192)
    small, middle, large = (bench.peak_bytes(kernel, longest) for longest in lengths)
    assert large - middle < 2.2 * (middle - small), (small, middle, large)


@needs_linux
def test_prints_what_a_token_adds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "kernels_here", lambda: ["CPU_TORCH"])
    monkeypatch.setattr(bench, "DENSE_LIMIT", 0)
    monkeypatch.setattr(bench, "peak_bytes", lambda name, longest: (5 << 20) + 2 * longest * 4096)
    rows = bench.print_memory([1024, 2048])
    assert [row["tokens"] for row in rows] == [2048, 4096]
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[-1] for line in lines] == ["6.5", "4.0"]
