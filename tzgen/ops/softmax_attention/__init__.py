# SPDX-License-Identifier: Apache-2.0
"""Softmax attention over ragged rows: self-attention under a mask, bidirectional, or across rows.

    O_i = sum_j softmax_j(scale * q_i . k_j + bias_ij) v_j      over the keys j that i sees

Lq queries and Lk keys of all rows, B rows, H heads. There is no kernel of our own: on CUDA torch's
variable-length Flash Attention where it can say it (`varlen.py`), else padded groups of rows
(`grouped.py`), as one `torch.library` op (`tzgen::softmax_attention`), which torch.export keeps as
one node with dynamic sizes. A query that sees no key gives zeros. Decoding from cached keys is in
`decode.py`, T5's relative bias in `buckets.py`.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor

from tzgen.ops.hstu_attention.mask import MaskSpec
from tzgen.ops.softmax_attention import grouped, varlen
from tzgen.ops.softmax_attention.buckets import distance_table, relative_buckets
from tzgen.ops.softmax_attention.call import Call
from tzgen.ops.softmax_attention.decode import BeamKeys, SharedKeys, softmax_attention_step
from tzgen.ops.softmax_attention.reference import softmax_attention_reference

__all__ = [
    "BeamKeys",
    "MaskSpec",
    "SharedKeys",
    "distance_table",
    "relative_buckets",
    "softmax_attention",
    "softmax_attention_reference",
    "softmax_attention_step",
]

KERNELS = ("AUTO", "PYTORCH", "TRITON", "VARLEN")


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    max_len: int,
    scale: float,
    key_offsets: Tensor | None = None,
    max_key_len: int | None = None,
    mask: MaskSpec | None = None,
    num_targets: Tensor | None = None,
    position_bias: Tensor | None = None,
    kernel: str = "AUTO",
) -> Tensor:
    """Softmax attention, [Lq, H, e] in the dtype of q; on a CPU in float32 or more.

    q [Lq, H, d], k [Lk, H, d], v [Lk, H, e]: any strides, one dtype.
    offsets int64 [B + 1] of the queries' rows; key_offsets those of the keys, where they are other
    rows (cross-attention); max_len, max_key_len: at least the longest row, host numbers.
    mask: None lets every query see every key of its row; `MaskSpec()` is causal, and its other
    fields (contextual prefix, window, semi-local) mean what they do in STU attention.
    num_targets int64 [B], with a mask: tokens at the end of each row that see the row before them
    and themselves, and that share one position.
    position_bias [1 or H, 2P - 1], differentiable: by place of the key minus place of the query,
    clamped to P - 1; contextual tokens have none. T5's buckets: `distance_table`.
    kernel: AUTO, PYTORCH (padded groups), VARLEN (torch's, or a refusal); TRITON is AUTO here.
    """
    keys = offsets if key_offsets is None else key_offsets
    longest = max_len if max_key_len is None else max_key_len
    call = Call(offsets, keys, max_len, longest, scale, mask, num_targets, position_bias)
    _check(q, k, v, call, cross=key_offsets is not None, kernel=kernel)
    if kernel != "PYTORCH":
        reason = varlen.refusal(q, v, call)
        if not reason:
            return varlen.attend(q, k, v, call)
        if kernel == "VARLEN":
            raise ValueError(f"kernel VARLEN cannot compute this: {reason}. Use AUTO.")
    return _softmax_attention(
        q,
        k,
        v,
        offsets,
        key_offsets,
        num_targets,
        position_bias,
        max_len,
        longest,
        scale,
        None if mask is None else [int(value) for value in astuple(mask)],
    )


def _check(q: Tensor, k: Tensor, v: Tensor, call: Call, *, cross: bool, kernel: str) -> None:
    if kernel not in KERNELS:
        raise ValueError(f"softmax_attention has no kernel {kernel!r}; it has {', '.join(KERNELS)}")
    if q.dim() != 3 or k.dim() != 3 or q.shape[1:] != k.shape[1:] or v.shape[:2] != k.shape[:2]:
        raise ValueError(
            "softmax_attention wants q [Lq, H, d], k [Lk, H, d] and v [Lk, H, e]; got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    for offsets in (call.offsets, call.key_offsets):
        if offsets.dtype != torch.int64 or offsets.shape != call.offsets.shape:
            raise ValueError(
                "offsets and key_offsets must be int64 [B + 1] of one B; got "
                f"{offsets.dtype} {tuple(offsets.shape)}"
            )
    if call.mask is not None and cross:
        raise ValueError("a mask counts places in one row: cross-attention takes none")
    if call.mask is not None and call.mask.timestamp_mask:
        raise ValueError("softmax_attention has no timestamp_mask: order by place")
    if call.num_targets is not None and call.mask is None:
        raise ValueError("num_targets needs a mask, e.g. MaskSpec()")
    table = call.position_bias
    if table is not None and (table.size(0) not in (1, q.size(1)) or table.size(1) % 2 == 0):
        raise ValueError(f"position_bias must be [1 or {q.size(1)}, odd]; got {tuple(table.shape)}")


def _call(tensors: tuple[Any, ...], constants: tuple[Any, ...]) -> Call:
    """From the op's arguments behind q, k, v."""
    offsets, key_offsets, num_targets, position_bias = tensors
    max_len, max_key_len, scale, fields = constants
    mask = None if fields is None else MaskSpec(*_typed(fields))
    keys = offsets if key_offsets is None else key_offsets
    return Call(offsets, keys, max_len, max_key_len, scale, mask, num_targets, position_bias)


def _typed(fields: list[int]) -> list[Any]:
    """The fields of a MaskSpec from integers."""
    kinds = (type(value) for value in astuple(MaskSpec()))
    return [kind(value) for kind, value in zip(kinds, fields, strict=True)]


@torch.library.custom_op("tzgen::softmax_attention", mutates_args=())
def _softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    key_offsets: Tensor | None,
    num_targets: Tensor | None,
    position_bias: Tensor | None,
    max_len: int,
    max_key_len: int,
    scale: float,
    mask: list[int] | None,
) -> Tensor:
    call = _call(
        (offsets, key_offsets, num_targets, position_bias), (max_len, max_key_len, scale, mask)
    )
    return grouped.forward(q, k, v, call)


@_softmax_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return torch.empty((q.size(0), q.size(1), v.size(2)), dtype=q.dtype, device=q.device)


@torch.library.custom_op("tzgen::softmax_attention_backward", mutates_args=())
def _softmax_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    key_offsets: Tensor | None,
    num_targets: Tensor | None,
    position_bias: Tensor | None,
    max_len: int,
    max_key_len: int,
    scale: float,
    mask: list[int] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = _call(
        (offsets, key_offsets, num_targets, position_bias), (max_len, max_key_len, scale, mask)
    )
    return grouped.backward(grad, q, k, v, call)


@_softmax_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
    def fresh(like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, device=like.device)

    table = rest[3]
    dtype = torch.promote_types(q.dtype, torch.float32)
    shape = (0, 0) if table is None else table.shape
    return fresh(q), fresh(k), fresh(v), torch.empty(shape, dtype=dtype, device=q.device)


NUM_TENSORS = 7  # leading tensor arguments of the op


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:NUM_TENSORS])
    ctx.constants = inputs[NUM_TENSORS:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    table = tensors[-1]
    dq, dk, dv, d_table = _softmax_attention_backward(grad, *tensors, *ctx.constants)
    d_bias = None if table is None else d_table.to(table.dtype)
    return dq, dk, dv, None, None, None, d_bias, *([None] * len(ctx.constants))


torch.library.register_autograd("tzgen::softmax_attention", _backward, setup_context=_setup_context)
