# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of ops/stu_linear: in the interpreter, compiled for GPUs, and on a GPU."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from stu_linear_cases import assert_close, errors, run_input, run_output
from stu_linear_triton_main import DTYPES, SEED, SHAPES, VARIANTS, results

from tzgen.ops.dropout import keep_mask, keep_scale

pytest.importorskip("triton", reason="needs triton")
MAIN = Path(__file__).with_name("stu_linear_triton_main.py")
ROOT = MAIN.parent.parent.parent
KEYS = [
    f"{shape}/{variant}/{dtype}/{kept}"
    for shape in SHAPES
    for variant in VARIANTS
    for dtype in DTYPES
    for kept in ("recomputed", "kept")[: 2 if dtype == "float32" else 1]
]
BOUNDS = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 5e-2}


def child(*words: str, **environment: str) -> str:
    """Standard output of the main file in a process of its own."""
    path = os.pathsep.join([str(ROOT), str(MAIN.parent)])
    done = subprocess.run(
        [sys.executable, str(MAIN), *words],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def compare(found: dict[str, Any], key: str) -> None:
    """Output and gradients against float64, and the design's 2x / 5x rule for halves."""
    shape, variant, dtype, _ = key.split("/")
    case = dataclasses.replace(SHAPES[shape], **VARIANTS[variant])
    for part, run, options in (
        ("input", run_input, {}),
        ("output", run_output, {"dropout": 0.4}),
    ):
        exact = run(case, "REFERENCE", torch.float64, **options)
        assert_close(found[key][part], exact, BOUNDS[dtype])
        if dtype == "float32" or case.tokens < 10:  # of few numbers the largest error is chance
            continue
        plain = errors(run(case, "REFERENCE", getattr(torch, dtype), **options), exact)
        for name, (relative, largest) in errors(found[key][part], exact).items():
            times = 5 if name.startswith("d_") else 2
            assert relative <= times * plain[name][0] + 1e-4, name
            assert largest <= times * plain[name][1] + 1e-3, name


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("triton") / "results.pt"
    child("interpret", str(file), TRITON_INTERPRET="1")
    found: dict[str, Any] = torch.load(file)
    return found


@pytest.mark.parametrize("key", KEYS)
def test_interpreter_matches_the_reference(interpreted: dict[str, Any], key: str) -> None:
    compare(interpreted, key)


def test_dropout_alone_is_the_documented_hash(interpreted: dict[str, Any]) -> None:
    for shape, got in interpreted["dropout"].items():
        rows, columns = map(int, shape.split("x"))
        keep = keep_mask(SEED, 0, rows, columns, 0.3, torch.device("cpu"))
        torch.testing.assert_close(got, keep * keep_scale(0.3))


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_gpus(capability: int, tmp_path: Path) -> None:
    variants = json.loads(child("compile", str(capability), TRITON_CACHE_DIR=str(tmp_path)))
    assert {v["name"] for v in variants} == {"_forward", "_backward", "_bias_silu", "_drop"}
    assert len(variants) >= 8
    for variant in variants:
        assert variant["spilled"] <= 16, variant
        assert variant["shared"] <= 48 * 1024, variant


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_gpu_matches_the_reference(dtype: str) -> None:
    found = results("cuda", {dtype: getattr(torch, dtype)})
    for key in found:
        compare(found, key)
