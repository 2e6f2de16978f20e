# SPDX-License-Identifier: Apache-2.0
"""`torch.ops.tzgen.embedding_lookup`: one body for CPU and CUDA, fake and autograd registrations.

The bodies use only torch operators that exist on both devices, so there is nothing to choose.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tzgen.ops.embedding_lookup.reference import NONE, bag_of_id, id_scale

DEVICES = ("cpu", "cuda")


def _forward(
    weight: Tensor,
    values: Tensor,
    lengths: Tensor | None,
    weights: Tensor | None,
    mode: int,
    sparse_grad: bool,
) -> Tensor:
    if mode == NONE or lengths is None:
        rows = weight.index_select(0, values).float()
        return rows if weights is None else rows * weights.unsqueeze(1)
    scale = id_scale(lengths, weights, mode, values.size(0))
    out = torch.zeros(lengths.size(0), weight.size(1), device=weight.device)
    if values.size(0) == 0 or lengths.size(0) == 0:
        return out
    if weight.dtype == torch.float32:
        offsets = F.pad(torch.cumsum(lengths, 0), (1, 0))
        return F.embedding_bag(
            values,
            weight,
            offsets,
            mode="sum",
            per_sample_weights=scale,
            include_last_offset=True,
        )
    rows = weight.index_select(0, values).float()
    rows = rows if scale is None else rows * scale.unsqueeze(1)
    return out.index_add_(0, bag_of_id(lengths, values.size(0)), rows)


def _rows_grad(
    grad: Tensor, values: Tensor, lengths: Tensor | None, weights: Tensor | None, mode: int
) -> Tensor:
    """grad [T or N, D] -> [T, D]: the gradient of each looked-up row."""
    num_ids = values.size(0)
    if mode == NONE or lengths is None:
        scale = weights
        rows = grad.clone() if weights is None else grad
    else:
        scale = id_scale(lengths, weights, mode, num_ids)
        rows = grad.index_select(0, bag_of_id(lengths, num_ids))
    return rows if scale is None else rows * scale.unsqueeze(1)


def _table_grad(rows: Tensor, values: Tensor, num_rows: int) -> Tensor:
    """rows [T, D] -> [V, D] dense; repeated ids add up."""
    return rows.new_zeros(num_rows, rows.size(1)).index_add_(0, values, rows)


def _fake_forward(
    weight: Tensor,
    values: Tensor,
    lengths: Tensor | None,
    weights: Tensor | None,
    mode: int,
    sparse_grad: bool,
) -> Tensor:
    count = values.size(0) if lengths is None else lengths.size(0)
    return weight.new_empty(count, weight.size(1), dtype=torch.float32)


def _fake_rows_grad(
    grad: Tensor, values: Tensor, lengths: Tensor | None, weights: Tensor | None, mode: int
) -> Tensor:
    return grad.new_empty(values.size(0), grad.size(1))


def _fake_table_grad(rows: Tensor, values: Tensor, num_rows: int) -> Tensor:
    return rows.new_empty(num_rows, rows.size(1))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, values, lengths, weights, ctx.mode, ctx.sparse_grad = inputs
    ctx.num_rows = weight.size(0)
    ctx.save_for_backward(values, lengths, weights)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, lengths, weights = ctx.saved_tensors
    ops = torch.ops.tzgen
    rows = ops.embedding_rows_grad(grad, values, lengths, weights, ctx.mode)
    if ctx.sparse_grad:
        shape = (ctx.num_rows, rows.size(1))
        table = torch.sparse_coo_tensor(values.unsqueeze(0), rows, shape, check_invariants=False)
    else:
        table = ops.embedding_table_grad(rows, values, ctx.num_rows)
    return table, None, None, None, None, None


def register() -> None:
    """Define the three ops; called once, when the package is imported."""
    for name, body, fake in (
        ("embedding_lookup", _forward, _fake_forward),
        ("embedding_rows_grad", _rows_grad, _fake_rows_grad),
        ("embedding_table_grad", _table_grad, _fake_table_grad),
    ):
        op = torch.library.custom_op(f"tzgen::{name}", body, mutates_args=(), device_types=DEVICES)
        op.register_fake(fake)
        if body is _forward:
            op.register_autograd(_backward, setup_context=_save)
