# SPDX-License-Identifier: Apache-2.0
"""What test_ultra_hstu_triton.py runs where kernels run; see tests/ops/interpreted.py."""

from __future__ import annotations

import sys

import torch
from test_ultra_hstu import both, config, groups, widths
from torch import Tensor

from tzgen.config.tasks import task_specs
from tzgen.embeddings import Ragged
from tzgen.models.base import MODELS


def two_steps(kernel: str) -> dict[str, Tensor]:
    """Logits before, between and after two steps of SGD, and the gradients of the last, by name."""
    made = config()
    torch.manual_seed(4)
    model = MODELS["ultra_hstu"](
        made.ultra_hstu, widths=widths(made), tasks=task_specs(made), kernel=kernel
    )
    given = {
        name: value.map(_float32) if isinstance(value, Ragged) else _float32(value)
        for name, value in groups(*both()).items()
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found: dict[str, Tensor] = {}
    model.eval()  # dropout draws nothing
    for step in range(3):
        optimizer.zero_grad()
        logits = model(given).logits
        found |= {f"{step}.{task}": value.detach() for task, value in logits.items()}
        sum(value.square().mean() for value in logits.values()).backward()
        optimizer.step()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found | gradients


def kernels_loaded() -> bool:
    """Whether this process has run the attention's Triton kernels, forward and backward."""
    names = ("triton_forward", "triton_backward")
    return all(f"tzgen.ops.hstu_attention.{name}" in sys.modules for name in names)


def _float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
