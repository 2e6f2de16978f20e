# SPDX-License-Identifier: Apache-2.0
"""Inputs of `stu_input` and `stu_output`, and both run with every gradient, for their tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tzgen.ops.stu_linear import (
    stu_input,
    stu_input_reference,
    stu_output,
    stu_output_reference,
)

EPS = 1e-6


@dataclass(frozen=True)
class Case:
    """L tokens, D features, heads of hidden_dim and attention_dim."""

    tokens: int
    dim: int
    heads: int
    hidden: int
    attention: int
    activated: str = ""
    output_form: str = "CONCAT_UOX"
    activate_u: bool = True
    group_norm: bool = False

    @property
    def width(self) -> int:
        return self.heads * self.hidden

    @property
    def widths(self) -> tuple[int, int, int, int]:
        scores = self.heads * self.attention
        return self.width, self.width, scores, scores


INPUTS = ("x", "norm_weight", "norm_bias", "weight", "bias")
OUTPUTS = ("attended", "u", "x", "norm_weight", "norm_bias", "weight")


def draw(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    make = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=make, dtype=torch.float64) * scale


def input_tensors(case: Case) -> dict[str, Tensor]:
    """float64 arguments of stu_input; scores of what comes out are O(1)."""
    rows = sum(case.widths)
    return {
        "x": draw(case.tokens, case.dim) + 0.3,
        "norm_weight": 1 + draw(case.dim, scale=0.3, seed=1),
        "norm_bias": draw(case.dim, scale=0.3, seed=2),
        "weight": draw(rows, case.dim, scale=case.dim**-0.5, seed=3),
        "bias": draw(rows, scale=0.5, seed=4),
    }


def output_tensors(case: Case) -> dict[str, Tensor]:
    """float64 arguments of stu_output."""
    columns = case.width * (3 if case.output_form == "CONCAT_UOX" else 1)
    norm = case.heads if case.group_norm else case.width
    return {
        "attended": draw(case.tokens, case.width, seed=1) - 0.2,
        "u": draw(case.tokens, case.width, seed=2),
        "x": draw(case.tokens, case.dim, seed=3),
        "norm_weight": 1 + draw(norm, scale=0.3, seed=4),
        "norm_bias": draw(norm, scale=0.3, seed=5),
        "weight": draw(case.dim, columns, scale=columns**-0.5, seed=6),
    }


def gradients(
    outs: Sequence[Tensor], names: Sequence[str], leaves: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Outputs under `names` and the gradient of each leaf under d_<name>."""
    weights = [draw(*out.shape, seed=9).to(out.dtype).to(out.device) for out in outs]
    found = torch.autograd.grad(list(outs), list(leaves.values()), weights)
    named = dict(zip(names, (out.detach() for out in outs), strict=True))
    return named | {f"d_{name}": grad for name, grad in zip(leaves, found, strict=True)}


def leaves_of(tensors: dict[str, Tensor], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    return {
        name: tensor.to(device=device, dtype=dtype).requires_grad_()
        for name, tensor in tensors.items()
    }


def run_input(
    case: Case,
    kernel: str,
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    recompute_normed_x: bool = True,
    recompute_uvqk: bool = True,
) -> dict[str, Tensor]:
    """kernel "REFERENCE" or one of the op's."""
    leaves = leaves_of(input_tensors(case), dtype, device)
    fixed = {"widths": case.widths, "activated": case.activated, "eps": EPS}
    if kernel == "REFERENCE":
        outs = stu_input_reference(**leaves, **fixed)
    else:
        outs = stu_input(
            **leaves,
            **fixed,
            recompute_normed_x=recompute_normed_x,
            recompute_uvqk=recompute_uvqk,
            kernel=kernel,
        )
    return gradients(outs, tuple("uvqk"), leaves)


def run_output(
    case: Case,
    kernel: str,
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    dropout: float = 0.0,
    recompute_y: bool = True,
) -> dict[str, Tensor]:
    """kernel "REFERENCE" or one of the op's; dropout is seeded by 7."""
    leaves = leaves_of(output_tensors(case), dtype, device)
    fixed = {
        "output_form": case.output_form,
        "activate_u": case.activate_u,
        "group_norm_heads": case.heads if case.group_norm else None,
        "eps": EPS,
        "dropout": dropout,
    }
    torch.manual_seed(7)
    if kernel == "REFERENCE":
        seed = int(torch.randint(0, (1 << 63) - 1, (), dtype=torch.int64))
        out = stu_output_reference(**leaves, **fixed, seed=seed)
    else:
        out = stu_output(**leaves, **fixed, training=True, recompute_y=recompute_y, kernel=kernel)
    return gradients([out], ["out"], leaves)


def errors(got: dict[str, Tensor], want: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """(relative L2, largest) difference by name."""
    assert got.keys() == want.keys()
    found = {}
    for name in want:
        assert got[name].shape == want[name].shape, name
        difference = got[name].double().cpu() - want[name].double().cpu()
        norm = want[name].double().norm().item()
        largest = difference.abs().max().item() if difference.numel() else 0.0
        found[name] = (difference.norm().item() / (norm + 1e-30), largest)
    return found


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor], bound: float) -> None:
    """Relative L2 below `bound`; the largest difference below 20 times it."""
    for name, (relative, largest) in errors(got, want).items():
        scale = want[name].abs().max().item() if want[name].numel() else 1.0
        assert relative < bound, f"{name}: relative error {relative:.2e}"
        assert largest <= 20 * bound * max(scale, 1.0), f"{name}: largest error {largest:.2e}"
