# SPDX-License-Identifier: Apache-2.0
"""STU attention over ragged rows: SiLU(alpha q.k + rab) / N under the mask of `mask.py`, times v.

    O_i = sum_j  M_ij * SiLU(alpha * q_i . k_j + rab_ij) / N * v_j          no softmax, no dropout

L tokens of all rows, H heads, B rows. One `torch.library` op (`tzgen::hstu_attention`), so that
torch.export keeps one node with dynamic B and L. N is a constant of the caller: what a user gets
never depends on who else is in the batch. Source: Zhai et al. 2024, section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention.dispatch import KERNELS, backward_of, chosen_kernel, forward_of
from tzgen.ops.hstu_attention.mask import MaskSpec, dense_mask, visible
from tzgen.ops.hstu_attention.reference import hstu_attention_reference

__all__ = [
    "MaskSpec",
    "chosen_kernel",
    "dense_mask",
    "hstu_attention",
    "hstu_attention_reference",
    "visible",
]


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    max_len: int,
    alpha: float,
    divisor: float,
    mask: MaskSpec,
    num_targets: Tensor | None = None,
    timestamps: Tensor | None = None,
    position_bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    time_bias_divisor: float = 0.301,
    kernel: str = "AUTO",
) -> Tensor:
    """STU attention, [L, H, hidden_dim] in the dtype of q; math in float32 (float64 for float64).

    q, k [L, H, attention_dim], v [L, H, hidden_dim]: any strides, one dtype.
    offsets int64 [B + 1] from 0 to L; rows may be empty.
    max_len: at least the longest row, a host number (kernels size their grid with it).
    divisor: N. num_targets int64 [B]: how many tokens at the end of each row are candidates.
    timestamps int64 [L]: with `mask.timestamp_mask` or `time_bias`.
    position_bias [1 or H, odd], time_bias [1 or H, K + 1]: tables of `bias.py`, differentiable.
    kernel: AUTO, PYTORCH or TRITON (`dispatch.py`); what a device cannot run is refused.
    """
    _check(q, k, v, offsets, divisor, mask, timestamps, position_bias, time_bias, kernel)
    return _hstu_attention(
        q,
        k,
        v,
        offsets,
        num_targets,
        timestamps,
        position_bias,
        time_bias,
        max_len,
        alpha,
        divisor,
        time_bias_divisor,
        mask.contextual_len,
        mask.max_attn_len,
        mask.window_keeps_contextual,
        mask.append_stable,
        mask.timestamp_mask,
        mask.realtime_len,
        mask.sla_k1,
        mask.sla_k2,
        mask.full_attn_tail,
        kernel,
    )


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    divisor: float,
    mask: MaskSpec,
    timestamps: Tensor | None,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    kernel: str,
) -> None:
    if kernel not in KERNELS:
        raise ValueError(f"hstu_attention has no kernel {kernel!r}; it has {', '.join(KERNELS)}")
    if q.dim() != 3 or q.shape != k.shape or v.dim() != 3 or v.shape[:2] != q.shape[:2]:
        raise ValueError(
            "hstu_attention wants q, k [L, H, attention_dim] and v [L, H, hidden_dim]; got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if offsets.dtype != torch.int64 or offsets.dim() != 1:
        raise ValueError(f"offsets must be int64 [B + 1]; got {offsets.dtype} {offsets.dim()}-d")
    if divisor <= 0:
        raise ValueError(f"divisor (scaling_seqlen) must be positive; got {divisor}")
    if timestamps is None and (mask.timestamp_mask or time_bias is not None):
        raise ValueError("timestamp_mask and time_bias need timestamps int64 [L]")
    if timestamps is not None and (timestamps.dtype != torch.int64 or timestamps.dim() != 1):
        raise ValueError(f"timestamps must be int64 [L]; got {timestamps.dtype}")
    for name, table in (("position_bias", position_bias), ("time_bias", time_bias)):
        if table is not None and (table.dim() != 2 or table.size(0) not in (1, q.size(1))):
            raise ValueError(f"{name} must be [1 or H, columns]; got {tuple(table.shape)}")
    if position_bias is not None and position_bias.size(1) % 2 == 0:
        raise ValueError(f"position_bias needs 2P - 1 columns; got {position_bias.size(1)}")


@torch.library.custom_op("tzgen::hstu_attention", mutates_args=())
def _hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    num_targets: Tensor | None,
    timestamps: Tensor | None,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    max_len: int,
    alpha: float,
    divisor: float,
    time_bias_divisor: float,
    contextual_len: int,
    max_attn_len: int,
    window_keeps_contextual: bool,
    append_stable: bool,
    timestamp_mask: bool,
    realtime_len: int,
    sla_k1: int,
    sla_k2: int,
    full_attn_tail: int,
    kernel: str,
) -> Tensor:
    mask = MaskSpec(
        contextual_len,
        max_attn_len,
        window_keeps_contextual,
        append_stable,
        timestamp_mask,
        realtime_len,
        sla_k1,
        sla_k2,
        full_attn_tail,
    )
    call = Call(
        mask,
        max_len,
        alpha,
        divisor,
        time_bias_divisor,
        num_targets,
        timestamps,
        position_bias,
        time_bias,
    )
    with torch.autocast(q.device.type, enabled=False):  # the math has a dtype of its own
        return forward_of(kernel, q).forward(q, k, v, offsets, call)


@_hstu_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return torch.empty(v.shape, dtype=q.dtype, device=v.device)


@torch.library.custom_op("tzgen::hstu_attention_backward", mutates_args=())
def _hstu_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    num_targets: Tensor | None,
    timestamps: Tensor | None,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    max_len: int,
    alpha: float,
    divisor: float,
    time_bias_divisor: float,
    contextual_len: int,
    max_attn_len: int,
    window_keeps_contextual: bool,
    append_stable: bool,
    timestamp_mask: bool,
    realtime_len: int,
    sla_k1: int,
    sla_k2: int,
    full_attn_tail: int,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    mask = MaskSpec(
        contextual_len,
        max_attn_len,
        window_keeps_contextual,
        append_stable,
        timestamp_mask,
        realtime_len,
        sla_k1,
        sla_k2,
        full_attn_tail,
    )
    call = Call(
        mask,
        max_len,
        alpha,
        divisor,
        time_bias_divisor,
        num_targets,
        timestamps,
        position_bias,
        time_bias,
    )
    with torch.autocast(q.device.type, enabled=False):
        return backward_of(kernel, q).backward(grad, q, k, v, offsets, call)


@_hstu_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *rest: Any) -> Any:
    def fresh(like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, device=like.device)

    def table(like: Tensor | None) -> Tensor:
        dtype = torch.promote_types(q.dtype, torch.float32)
        shape = (0, 0) if like is None else like.shape
        return torch.empty(shape, dtype=dtype, device=q.device)

    return fresh(q), fresh(k), fresh(v), table(rest[2]), table(rest[3])


NUM_TENSORS = 8  # leading tensor arguments of the op


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:NUM_TENSORS])
    ctx.constants = inputs[NUM_TENSORS:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    position_bias, time_bias = tensors[6], tensors[7]
    dq, dk, dv, d_position, d_time = _hstu_attention_backward(grad, *tensors, *ctx.constants)
    return (
        dq,
        dk,
        dv,
        None,
        None,
        None,
        None if position_bias is None else d_position.to(position_bias.dtype),
        None if time_bias is None else d_time.to(time_bias.dtype),
        *([None] * len(ctx.constants)),
    )


torch.library.register_autograd("tzgen::hstu_attention", _backward, setup_context=_setup_context)
