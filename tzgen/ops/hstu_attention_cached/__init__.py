# SPDX-License-Identifier: Apache-2.0
"""STU attention of new tokens against cached keys and values: prefill, append and score in one op.

    O_i = sum_j  M_ij * SiLU(alpha * q_i . k_j + rab_ij) / N * v_j     i new; j cached or new

B rows, Lq new tokens of all rows. Row b has new tokens at its places lengths[b] and on; the last
num_targets[b] of them are candidates, and mask, places and biases are those of `hstu_attention` on
the joined row: the result is the new tokens' part of it. A prefill has an empty cache, an append no
targets, a score nothing but targets; any mixture works, with other lengths in every row. The cache
is contiguous or paged (`CachedKV`) and is not copied.

One `torch.library` op (`tzgen::hstu_attention_cached`) of tensors and numbers, so that torch.export
keeps one node with dynamic rows, tokens and cache. Inference only. What `kernel` means is said in
`hstu_attention/dispatch.py`; each form is a file with `forward(q, k, v, offsets, cache, call)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention.dispatch import KERNELS, chosen_kernel
from tzgen.ops.hstu_attention.mask import MaskSpec
from tzgen.ops.hstu_attention_cached.cache import CachedKV
from tzgen.ops.hstu_attention_cached.reference import hstu_attention_cached_reference

__all__ = ["CachedKV", "hstu_attention_cached", "hstu_attention_cached_reference"]

FOLDER = "tzgen.ops.hstu_attention_cached"
FILES = MappingProxyType({"CPU_TORCH": "cpu", "CPU_NATIVE": "native", "TRITON": "triton_forward"})


def hstu_attention_cached(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    cache: CachedKV,
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
    """Attention of the new tokens, [Lq, H, hidden_dim] in the dtype of q; math as `hstu_attention`.

    q, k [Lq, H, attention_dim], v [Lq, H, hidden_dim]: new tokens, any strides, the cache's dtype.
    offsets int64 [B + 1] from 0 to Lq; rows may have no new tokens, no cached ones, or neither.
    max_len: at least the most new tokens of a row, a host number. divisor: N.
    num_targets int64 [B]: how many of a row's new tokens, at its end, are candidates; None = none.
    timestamps int64 [Lq] of the new tokens, with `mask.timestamp_mask` or `time_bias`; the cache
    then has its own. Biases as in `hstu_attention`.
    kernel: AUTO, PYTORCH or TRITON; what a device cannot run is refused.
    """
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
    _check(q, k, v, offsets, call, kernel)
    _check_cache(q, v, offsets, cache, call)
    return _hstu_attention_cached(q, k, v, offsets, *_flat(cache, call), kernel)


def _flat(cache: CachedKV, call: Call) -> tuple[Any, ...]:
    """Cache and call as the arguments of the op between offsets and kernel."""
    return (
        cache.k,
        cache.v,
        cache.lengths,
        cache.table,
        cache.timestamps,
        call.num_targets,
        call.timestamps,
        call.position_bias,
        call.time_bias,
        call.max_len,
        cache.max_len,
        call.alpha,
        call.divisor,
        call.time_bias_divisor,
        [int(value) for value in vars(call.mask).values()],
    )


def _check(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, call: Call, kernel: str) -> None:
    if kernel not in KERNELS:
        known = ", ".join(KERNELS)
        raise ValueError(f"hstu_attention_cached has no kernel {kernel!r}; it has {known}")
    if q.dim() != 3 or q.shape != k.shape or v.dim() != 3 or v.shape[:2] != q.shape[:2]:
        raise ValueError(
            "hstu_attention_cached wants q, k [Lq, H, attention_dim], v [Lq, H, hidden_dim]; got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if offsets.dtype != torch.int64 or offsets.dim() != 1:
        raise ValueError(f"offsets must be int64 [B + 1]; got {offsets.dtype} {offsets.dim()}-d")
    if call.divisor <= 0:
        raise ValueError(f"divisor (scaling_seqlen) must be positive; got {call.divisor}")
    times = call.timestamps
    if times is None and (call.mask.timestamp_mask or call.time_bias is not None):
        raise ValueError(
            "timestamp_mask and time_bias need timestamps int64 [Lq], of the new tokens"
        )
    if times is not None and (times.dtype != torch.int64 or times.dim() != 1):
        raise ValueError(f"timestamps must be int64 [Lq]; got {times.dtype} {times.dim()}-d")
    for name, table in (("position_bias", call.position_bias), ("time_bias", call.time_bias)):
        if table is not None and (table.dim() != 2 or table.size(0) not in (1, q.size(1))):
            raise ValueError(f"{name} must be [1 or H, columns]; got {tuple(table.shape)}")
    if call.position_bias is not None and call.position_bias.size(1) % 2 == 0:
        columns = call.position_bias.size(1)
        raise ValueError(f"position_bias needs 2P - 1 columns; got {columns}")


def _check_cache(q: Tensor, v: Tensor, offsets: Tensor, cache: CachedKV, call: Call) -> None:
    paged = cache.table is not None
    wanted = 4 if paged else 3
    shape = "[P, page_size, H, dim]" if paged else "[Lc, H, dim]"
    for name, held, new in (("k", cache.k, q), ("v", cache.v, v)):
        if held.dim() != wanted or held.shape[-2:] != new.shape[-2:]:
            raise ValueError(
                f"the cache's {name} must be {shape} with the heads and dim of the new tokens, "
                f"{tuple(new.shape[-2:])}; got {tuple(held.shape)}"
            )
        if held.dtype != new.dtype:
            raise ValueError(
                f"the cache's {name} is {held.dtype}, the new tokens are {new.dtype}: write the "
                "cache in the dtype that the model computes in"
            )
    if cache.k.shape[:-1] != cache.v.shape[:-1]:
        raise ValueError(f"the cache's k and v disagree: {cache.k.shape} and {cache.v.shape}")
    if cache.lengths.dtype != torch.int64 or cache.lengths.dim() != 1:
        raise ValueError(f"the cache's lengths must be int64 [B]; got {cache.lengths.dtype}")
    if cache.table is not None and (cache.table.dtype != torch.int64 or cache.table.dim() != 2):
        raise ValueError(f"the cache's table must be int64 [B, max_pages]; got {cache.table.dtype}")
    if cache.timestamps is None and (call.mask.timestamp_mask or call.time_bias is not None):
        raise ValueError(
            "timestamp_mask and time_bias need the timestamps of cached tokens as well: fill "
            "CachedKV.timestamps"
        )
    inputs = (q, v, cache.k, cache.v, call.position_bias, call.time_bias)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        raise ValueError(
            "hstu_attention_cached is for inference and has no gradients: call it under "
            "torch.no_grad(), or train with hstu_attention"
        )


@torch.library.custom_op("tzgen::hstu_attention_cached", mutates_args=())
def _hstu_attention_cached(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    cache_k: Tensor,
    cache_v: Tensor,
    cache_lengths: Tensor,
    cache_table: Tensor | None,
    cache_timestamps: Tensor | None,
    num_targets: Tensor | None,
    timestamps: Tensor | None,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    max_len: int,
    cache_max_len: int,
    alpha: float,
    divisor: float,
    time_bias_divisor: float,
    mask: Sequence[int],
    kernel: str,
) -> Tensor:
    call = Call(
        _mask_of(tuple(mask)),
        max_len,
        alpha,
        divisor,
        time_bias_divisor,
        num_targets,
        timestamps,
        position_bias,
        time_bias,
    )
    cache = CachedKV(cache_k, cache_v, cache_lengths, cache_max_len, cache_table, cache_timestamps)
    with torch.autocast(q.device.type, enabled=False):  # the math has a dtype of its own
        return _forward_of(kernel, q)(q, k, v, offsets, cache, call)


@_hstu_attention_cached.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return torch.empty(v.shape, dtype=q.dtype, device=v.device)


@lru_cache(maxsize=256)  # one a model; the reading takes longer than a small call
def _mask_of(values: tuple[int, ...]) -> MaskSpec:
    """The spec whose fields, in order, are these numbers; flags come back as bool."""
    flags = {field.name: isinstance(field.default, bool) for field in fields(MaskSpec)}
    named = zip(flags, values, strict=True)
    given = {name: bool(value) if flags[name] else value for name, value in named}
    return MaskSpec(**given)  # type: ignore[arg-type]


def _forward_of(kernel: str, q: Tensor) -> Callable[..., Tensor]:
    """The `forward` that `kernel` comes to for q, imported when first used."""
    chosen = chosen_kernel(kernel, q.device, q.dtype)
    if kernel in ("AUTO", "PYTORCH") and find_spec(f"{FOLDER}.{FILES[chosen]}") is None:
        chosen = "CPU_TORCH"  # it runs anywhere
    forward: Callable[..., Tensor] = import_module(f"{FOLDER}.{FILES[chosen]}").forward
    return forward
