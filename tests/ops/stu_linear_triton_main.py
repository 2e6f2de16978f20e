# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of ops/stu_linear in a process of their own, for test_stu_linear_triton.py.

TRITON_INTERPRET=1 python stu_linear_triton_main.py interpret RESULTS.pt
python stu_linear_triton_main.py compile 90        # a JSON list of variants on standard output
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import torch
from stu_linear_cases import Case, run_input, run_output

SHAPES = {
    "no tokens": Case(0, 8, 2, 3, 5),
    "one token": Case(1, 8, 2, 3, 5),
    "odd": Case(37, 24, 4, 5, 3),
    "whole blocks": Case(64, 32, 2, 32, 16),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "production": {},
    "paper": {"activated": "vqk", "output_form": "UX"},
    "u in front": {"activated": "u", "activate_u": False},
    "group norm": {"group_norm": True},
}
SEED = 0x1234_5678_9ABC_DEF0
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def results(device: str = "cpu", dtypes: dict[str, torch.dtype] = DTYPES) -> dict[str, Any]:
    """{"shape/variant/dtype/kept or recomputed": {"input": {...}, "output": {...}}}."""
    found = {}
    for shape, base in SHAPES.items():
        for variant, change in VARIANTS.items():
            case = dataclasses.replace(base, **change)
            for name, dtype in dtypes.items():
                for again in (True, False) if name == "float32" else (True,):
                    key = f"{shape}/{variant}/{name}/{'recomputed' if again else 'kept'}"
                    found[key] = {
                        "input": run_input(
                            case,
                            "TRITON",
                            dtype,
                            device=device,
                            recompute_normed_x=again,
                            recompute_uvqk=again,
                        ),
                        "output": run_output(
                            case, "TRITON", dtype, device=device, dropout=0.4, recompute_y=again
                        ),
                    }
    return found


def dropped() -> dict[str, torch.Tensor]:
    """Dropout alone: odd shapes, by the seed in the test."""
    from tzgen.ops.dropout.triton_dropout import drop

    return {
        f"{rows}x{columns}": drop(torch.ones(rows, columns), SEED, 0.3)
        for rows, columns in ((0, 3), (1, 1), (37, 150))
    }


def compile_all(capability: int) -> list[dict[str, Any]]:
    """Every kernel at D 512, 4 heads, in bfloat16 (and float32), for a GPU that is not there."""
    import triton
    from triton_aot import AbsentDevice

    from tzgen.ops.dropout import triton_dropout
    from tzgen.ops.layer_norm import triton_layer_norm
    from tzgen.ops.stu_linear import triton_gate, triton_silu
    from tzgen.ops.stu_linear.gate import Gate, Sums

    device = AbsentDevice(capability)
    triton.runtime.driver.set_active(device)
    for dtype in (torch.bfloat16, torch.float32)[: 2 if capability == 90 else 1]:
        x, wide = torch.zeros(64, 512, dtype=dtype), torch.zeros(64, 1536, dtype=dtype)
        vector, sums = torch.zeros(512), Sums(torch.zeros(512), torch.zeros(512))
        _, mean, rstd = triton_layer_norm.forward(x, vector, vector, 1e-6)
        triton_layer_norm.backward(x, x, vector, mean, rstd)
        triton_silu.bias_silu(x, vector.to(dtype), torch.zeros_like(x))
        triton_dropout.drop(x, SEED, 0.1)
        for groups in (1, 4):
            gate = Gate(concat=True, activate_u=True, groups=groups, eps=1e-6, ratio=0.1, seed=7)
            statistics = {"mean": torch.zeros(64, groups), "rstd": torch.zeros(64, groups)}
            triton_gate.forward(x, x, vector, vector, gate, first_row=0, out=wide, **statistics)
            triton_gate.backward(
                wide,
                x,
                x,
                vector,
                vector,
                *statistics.values(),
                gate,
                first_row=0,
                d_attended=x,
                d_u=x,
                sums=sums,
                y=wide,
            )
    return [dataclasses.asdict(compiled) for compiled in device.compiled]


if __name__ == "__main__":
    if sys.argv[1] == "interpret":
        torch.save(results() | {"dropout": dropped()}, sys.argv[2])
    else:
        print(json.dumps(compile_all(int(sys.argv[2]))))
