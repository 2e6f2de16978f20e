# SPDX-License-Identifier: Apache-2.0
"""What every implementation of STU attention is tested with: cases, a run of a case, a comparison.

Scores span about +- 8, so that SiLU is exercised beyond its linear part.
Cases may lie on any device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dense_hstu import pair_mask
from torch import Tensor

from tzgen.ops.hstu_attention import MaskSpec, hstu_attention

NAMES = ("out", "grad_q", "grad_k", "grad_v", "grad_position", "grad_time")
SPECS = [
    pytest.param(MaskSpec(), id="causal"),
    pytest.param(MaskSpec(contextual_len=3), id="contextual"),
    pytest.param(MaskSpec(contextual_len=3, append_stable=True), id="stable"),
    pytest.param(MaskSpec(max_attn_len=5), id="window"),
    pytest.param(MaskSpec(contextual_len=3, max_attn_len=5), id="window+contextual"),
    pytest.param(MaskSpec(3, 5, window_keeps_contextual=False), id="window-contextual"),
    pytest.param(MaskSpec(contextual_len=2, timestamp_mask=True), id="mtgr"),
    pytest.param(MaskSpec(2, timestamp_mask=True, realtime_len=4), id="mtgr-static"),
    pytest.param(MaskSpec(sla_k1=4, sla_k2=3), id="semi-local"),
    pytest.param(MaskSpec(contextual_len=3, sla_k1=5, sla_k2=1), id="semi-local+contextual"),
    pytest.param(MaskSpec(max_attn_len=4, full_attn_tail=3), id="window+tail"),
    pytest.param(MaskSpec(3, 5, full_attn_tail=4), id="window+contextual+tail"),
]
BLOCK = 8  # of the shrunken tiling
LENGTHS = [5, 3, BLOCK - 1, BLOCK, BLOCK + 1, 20, 33, 6]
TARGETS = [0, 0, 2, 5, 1, 17, 30, 3]


class Case:
    """Inputs whose scores span about +- 8, and the call on them."""

    def __init__(
        self,
        spec: MaskSpec,
        *,
        lengths: list[int] = LENGTHS,
        targets: list[int] = TARGETS,
        biased: bool = False,
        dtype: torch.dtype = torch.float32,
        heads: int = 2,
        widths: tuple[int, int] = (6, 10),
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        make = torch.Generator().manual_seed(seed)
        total = sum(lengths)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            value = torch.randn(shape, generator=make, dtype=torch.float64) * scale
            return value.to(device, dtype).requires_grad_()

        self.spec, self.dtype = spec, dtype
        self.offsets = torch.tensor([0, *lengths], device=device).cumsum(0)
        self.targets = torch.tensor(targets, device=device)
        self.q, self.k = normal(total, heads, widths[0]), normal(total, heads, widths[0])
        self.v = normal(total, heads, widths[1])
        self.times = torch.randint(0, 100_000, (total,), generator=make).to(device)
        self.alpha, self.divisor = 2.0 / widths[0] ** 0.5, 12.0
        self.tables: dict[str, Tensor] = {}
        if biased:
            self.tables = {"position_bias": normal(heads, 11), "time_bias": normal(1, 20)}
        self.weights = normal(total, heads, widths[1]).detach()

    def in_float64(self) -> Case:
        """The same (rounded) inputs in float64: what an implementation is measured against."""
        exact = copy.copy(self)
        for name in ("q", "k", "v", "weights"):
            rounded = getattr(self, name).detach().double()
            setattr(exact, name, rounded.requires_grad_(name != "weights"))
        exact.tables = {
            name: table.detach().double().requires_grad_() for name, table in self.tables.items()
        }
        return exact

    def run(self, call: Callable[..., Tensor], **changes: Any) -> dict[str, Tensor]:
        arguments = {
            "alpha": self.alpha,
            "divisor": self.divisor,
            "mask": self.spec,
            "num_targets": self.targets,
            "timestamps": self.times,
            **self.tables,
            **changes,
        }
        out = call(self.q, self.k, self.v, self.offsets, **arguments)
        leaves = [self.q, self.k, self.v, *self.tables.values()]
        grads = torch.autograd.grad(out, leaves, self.weights)
        return dict(zip(NAMES, (out.detach(), *grads), strict=False))


def op(kernel: str) -> Callable[..., Tensor]:
    """`hstu_attention` with that kernel, called as the reference is."""

    def call(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        offsets: Tensor,
        *,
        max_len: int | None = None,
        **options: Any,
    ) -> Tensor:
        if max_len is None:
            max_len = int(offsets.diff().max()) if offsets.numel() > 1 else 0
        return hstu_attention(q, k, v, offsets, max_len=max_len, **{"kernel": kernel, **options})

    return call


def compare(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    """By name: relative L2 and largest error, relative to the largest value."""
    assert got.keys() == want.keys()
    for name, reference in want.items():
        reference = reference.double()
        error = got[name].double() - reference
        assert torch.isfinite(error).all(), f"{name} is not finite"
        scale = reference.norm().clamp(min=1e-12)
        assert error.norm() <= tolerance * scale, f"{name}: relative L2 {error.norm() / scale:.1e}"
        largest = reference.abs().amax().clamp(min=1e-12) if reference.numel() else 1.0
        worst = error.abs().amax() / largest if error.numel() else 0.0
        assert worst <= 10 * tolerance, f"{name}: largest error {worst:.1e}"


def naive(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, **options: Any) -> Tensor:
    """The causal formula in the dtype of q, row by row: whose error others are held to."""
    rows = []
    for row, (start, stop) in enumerate(pairwise(offsets)):
        scores = options["alpha"] * torch.einsum("ihd,jhd->hij", q[start:stop], k[start:stop])
        seen = pair_mask(int(stop - start), targets=int(options["num_targets"][row]))
        weights = F.silu(scores) / options["divisor"] * seen.to(scores)
        rows.append(torch.einsum("hij,jhd->ihd", weights, v[start:stop]))
    return torch.cat(rows)


# name -> a faulty attention made of the right one; a comparison must refuse each
MUTANTS: dict[str, Callable[..., Tensor]] = {
    "zero output": lambda call, *a, **o: call(*a, **o) * 0,
    "wrong alpha": lambda call, *a, **o: call(*a, **{**o, "alpha": o["alpha"] * 1.01}),
    "wrong divisor": lambda call, *a, **o: call(*a, **{**o, "divisor": o["divisor"] + 0.1}),
    "off-by-one mask": lambda call, *a, **o: call(*a, **{**o, "mask": MaskSpec(max_attn_len=31)}),
    "no targets": lambda call, *a, **o: call(*a, **{**o, "num_targets": None}),
    "one target fewer": lambda call, *a, **o: call(
        *a, **{**o, "num_targets": (o["num_targets"] - 1).clamp(min=0)}
    ),
    "dropped last block of keys": lambda call, q, k, v, offsets, **o: call(
        q, k, v * (torch.arange(len(v)) - offsets[1]).abs().gt(8)[:, None, None], offsets, **o
    ),
    "silu of half the score": lambda call, *a, **o: call(*a, **{**o, "alpha": o["alpha"] / 2}) * 2,
    "dropped self-term": lambda call, q, k, v, *a, **o: (
        call(q, k, v, *a, **o)
        - F.silu(o["alpha"] * (q * k).sum(-1, keepdim=True)) * v / o["divisor"]
    ),
    "forgotten table": lambda call, *a, **o: call(
        *a, **{**o, "position_bias": o["position_bias"] * 0}
    ),
}
