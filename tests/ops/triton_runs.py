# SPDX-License-Identifier: Apache-2.0
"""What test_hstu_attention_triton.py runs where kernels run; see interpreted.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from attention_cases import NAMES, Case, op
from torch import Tensor

from tzgen.ops.hstu_attention import (
    triton_backward,
    triton_backward_keys,
    triton_forward,
    triton_mask,
)
from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention.mask import MaskSpec
from tzgen.ops.hstu_attention.triton_configs import Tuning

Results = dict[str, Tensor]


def made(case: dict[str, Any]) -> Case:
    """A case whose times are whole thousands: a GPU's logarithm may move a time by one bucket where
    it lies on the border, and none of these does."""
    found = Case(**case)
    found.times = found.times // 1000 * 1000
    return found


def attention(case: dict[str, Any], **changes: Any) -> Results:
    """Output and gradients of a case by the op, by name, on the CPU."""
    got = made(case).run(op("TRITON"), **changes)
    return {name: value.cpu() for name, value in got.items()}


def direct(
    case: dict[str, Any], tuning: Tuning, prepare: Callable[..., Any] | None = None
) -> Results:
    """The same past the op, so that the launch can be told; `prepare` changes q, k, v, grad."""
    given = made(case)
    tensors = tuple(x.detach() for x in (given.q, given.k, given.v, given.weights))
    if prepare is not None:
        tensors = prepare(*tensors)
    q, k, v, grad = tensors
    call = Call(
        given.spec,
        int(given.offsets.diff().max()),
        given.alpha,
        given.divisor,
        0.301,
        given.targets,
        given.times,
        given.tables.get("position_bias"),
        given.tables.get("time_bias"),
    )
    call = detached(call)
    out = triton_forward.forward(q, k, v, given.offsets, call, tuning=tuning)
    grads = triton_backward.backward(grad, q, k, v, given.offsets, call, tuning=tuning)
    return {name: value.cpu() for name, value in zip(NAMES, (out, *grads), strict=True)}


def detached(call: Call) -> Call:
    values = (getattr(call, name) for name in call.__dataclass_fields__)
    return Call(*(x.detach() if isinstance(x, Tensor) else x for x in values))


def uvqk_views(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """The same numbers as columns of one matrix with an odd offset, and a transposed gradient."""
    heads, attention_dim, hidden_dim = q.size(1), q.size(2), v.size(2)
    parts = (v.flatten(1), q.flatten(1), k.flatten(1))
    width = sum(part.size(1) for part in parts) + 3
    matrix = torch.full((q.size(0) * width + 5,), torch.nan, dtype=q.dtype, device=q.device)
    rows = matrix[5:].view(q.size(0), width)
    rows[:, 3:] = torch.cat(parts, 1)
    v, q, k = rows[:, 3:].split([part.size(1) for part in parts], 1)
    v, q, k = (x.unflatten(1, (heads, -1)) for x in (v, q, k))
    assert q.size(2) == attention_dim and v.size(2) == hidden_dim and not q.is_contiguous()
    return q, k, v, grad.transpose(1, 2).contiguous().transpose(1, 2)


def poisoned(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """NaN in all tokens but [4, 23)."""
    tensors = tuple(x.clone() for x in (q, k, v, grad))
    for x in tensors:
        x[:4], x[23:] = torch.nan, torch.nan
    return tensors


def nan_candidate(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """The key and value of token 18 are NaN."""
    k, v = k.clone(), v.clone()
    k[18], v[18] = torch.nan, torch.nan
    return q, k, v, grad


@triton.jit
def _probe(seen, counted, by_key, length, history_end, times, BLOCK: tl.constexpr,
           SPEC: tl.constexpr, PAD: tl.constexpr):  # fmt: skip
    """The mask of one row, and how often tiles of queries and tiles of keys count each pair."""
    i = tl.arange(0, PAD)[:, None]
    j = tl.arange(0, PAD)[None, :]
    time_i = tl.load(times + i, mask=i < length, other=0)
    time_j = tl.load(times + j, mask=j < length, other=0)
    mask = triton_mask.visible(i, j, history_end, SPEC, time_i, time_j)
    real = (i < length) & (j < length)
    place = i * PAD + j
    tl.store(seen + place, (mask & real).to(tl.int32))
    for first in range(0, length, BLOCK):
        stop = tl.minimum(first + BLOCK, length)
        extra_stop, extra_full, low, full_low, full_high, high = triton_mask.key_range(
            first, stop, history_end, SPEC
        )
        extra_tiles, whole, tiles, main_first, main_last = triton_mask.plan(
            0, extra_stop, extra_full, low, full_low, full_high, high, BLOCK
        )
        mine = (i >= first) & (i < stop)
        for n in range(whole + main_last - main_first):
            at = triton_mask.full_tile(n, 0, whole, low, main_first, BLOCK)
            hit = mine & (j >= at) & (j < at + BLOCK)
            tl.store(counted + place, tl.load(counted + place) + hit.to(tl.int32) * 100)
        for n in range(extra_tiles - whole + main_first + tiles - main_last):
            at, end = triton_mask.masked_tile(n, 0, extra_stop, whole, extra_tiles, low, high,
                                              main_first, main_last, BLOCK)  # fmt: skip
            hit = mine & (j >= at) & (j < tl.minimum(at + BLOCK, end)) & mask
            tl.store(counted + place, tl.load(counted + place) + hit.to(tl.int32))
    for first in range(0, history_end, BLOCK):
        stop = tl.minimum(first + BLOCK, history_end)
        context, extra_start, extra_full, low, full_low, full_high, high = triton_mask.query_range(
            first, stop, history_end, length, SPEC
        )
        extra_tiles, whole, tiles, main_first, main_last = triton_mask.plan(
            extra_start, length, extra_full, low, full_low, full_high, high, BLOCK
        )
        mine = (j >= first) & (j < stop)
        for n in range(whole + main_last - main_first):
            at = triton_mask.full_tile(n, extra_start, whole, low, main_first, BLOCK)
            hit = mine & (i >= at) & (i < at + BLOCK)
            tl.store(by_key + place, tl.load(by_key + place) + hit.to(tl.int32) * 100)
        context_tiles = tl.cdiv(context, BLOCK)
        for n in range(context_tiles + extra_tiles - whole + main_first + tiles - main_last):
            at, end = triton_mask.masked_tile(n - context_tiles, extra_start, length, whole,
                                              extra_tiles, low, high, main_first, main_last,
                                              BLOCK)  # fmt: skip
            at = tl.where(n < context_tiles, n * BLOCK, at)
            end = tl.where(n < context_tiles, context, end)
            hit = mine & (i >= at) & (i < tl.minimum(at + BLOCK, end)) & mask
            tl.store(by_key + place, tl.load(by_key + place) + hit.to(tl.int32))


def probe(
    spec: MaskSpec, rows: list[tuple[int, int]], times: Tensor, block: int, pad: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each row (length, targets): the mask, counts by tiles of queries, by tiles of keys.

    A count is 100 for a pair in a tile that runs without a mask, 1 for a seen one in another.
    """
    out = []
    for length, targets in rows:
        results = [torch.zeros(pad, pad, dtype=torch.int32, device=times.device) for _ in range(3)]
        _probe[(1,)](*results, length, length - targets, times, BLOCK=block, SPEC=spec, PAD=pad)
        seen, counted, by_key = (x[:length, :length].cpu() for x in results)
        out.append((seen, counted, by_key))
    return out


@triton.jit
def _seen_later(i, j, history_end, SPEC: tl.constexpr, time_i, time_j):
    return triton_mask.visible(i + 1, j, history_end, SPEC, time_i, time_j)


@triton.jit
def _no_own_key(q_base, k_base, v_base, q_stride, k_stride, v_stride, first, stop, i, history_end,
                half_alpha, tables, head, TILE: tl.constexpr):  # fmt: skip
    return tl.full((TILE.block_m, TILE.padded_hidden), 0.0, tl.float32)


@triton.jit
def _half_silu(half, FAST: tl.constexpr):
    return half / (1.0 + tl.exp(-half))


@triton.jit
def _one_tile_less(extra_start, extra_stop, extra_full, low, full_low, full_high, high,
                   SIZE: tl.constexpr):  # fmt: skip
    return triton_mask.plan(extra_start, extra_stop, extra_full, low, full_low, full_high,
                            tl.maximum(high - SIZE, low), SIZE)  # fmt: skip


MUTANTS = {  # name -> what to put where, in forward and backward alike
    "mask off by one": ("visible", _seen_later),
    "target without itself": ("own_key", _no_own_key),
    "SiLU of half the score": ("silu", _half_silu),
    "last key tile dropped": ("plan", _one_tile_less),
}


def mutated(case: dict[str, Any], mutant: str) -> Results:
    """The case with a broken kernel (of the forward, or of dK, dV and dQ where those have it)."""
    name, broken = MUTANTS[mutant]
    modules = [triton_forward, triton_backward, triton_backward_keys]
    had = [module for module in modules if name in vars(module)]
    kept = [vars(module)[name] for module in had]
    for module in had:
        setattr(module, name, broken)
    try:
        return direct(case, Tuning())
    finally:
        for module, before in zip(had, kept, strict=True):
            setattr(module, name, before)
