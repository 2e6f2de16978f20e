# SPDX-License-Identifier: Apache-2.0
"""STU layers of few new tokens behind a cache, in one C++ call: a CPU's short way to score.

    u, v, q, k = SiLU on some of  LayerNorm(x) W^T + b              ops.stu_linear: stu_input
    O          = attention of q over the cache and k, v             ops.hstu_attention_cached
    x          = x + y W_o^T                                        ops.stu_linear: stu_output

With twenty candidates or a handful of events, the products take less time than the calls of the
three ops, their hand-offs between threads, and BLAS products of so few rows. Here one parallel
region does all layers, weights are read where they lie, and nothing is packed but the tokens.
Inference only, and eager only: a graph keeps the three ops. Callers ask `usable` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tzgen.ops import native
from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention.native import mask_fields, time_steps
from tzgen.ops.hstu_attention_cached import CachedKV

__all__ = ["MAX_TOKENS", "LayerShape", "LayerWeights", "stu_layers_cached", "usable"]

MAX_TOKENS = 512  # new tokens of all rows; with more of them a BLAS that packs weights is as fast
KERNELS = ("AUTO", "PYTORCH", "CPU_NATIVE")
DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class LayerShape:
    """Constants of a layer, as `stu_linear` explains them. by_head: each head is normed alone."""

    num_heads: int
    attention_dim: int
    hidden_dim: int
    activated: str
    output_form: str
    by_head: bool
    eps: float


@dataclass(frozen=True)
class LayerWeights:
    """Parameters of a layer, contiguous and in the dtype of x.

    linear: norm weight and bias [D], weight [P, D] and bias [P] (rows of u, v, q, k), output norm
    weight and bias [W] (or [heads], by head), output weight [D, 3 W or W]. Bias tables as in
    `hstu_attention`.
    """

    linear: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
    position_bias: Tensor | None
    time_bias: Tensor | None


def usable(x: Tensor, weight: Tensor, kernel: str) -> bool:
    """Whether new tokens x [L, D] can go through layers with such a weight here and now."""
    return (
        type(x) is Tensor  # neither fake nor traced
        and x.size(0) <= MAX_TOKENS
        and x.is_cpu
        and x.dtype in DTYPES
        and x.dtype == weight.dtype
        and kernel in KERNELS
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and native.available()
    )


def stu_layers_cached(
    x: Tensor,
    layers: Sequence[LayerWeights],
    shape: LayerShape,
    offsets: Tensor,
    caches: Sequence[CachedKV],
    call: Call,
    *,
    keep: bool,
    states: bool = True,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """New tokens x [L, D] through `layers` -> out [L, D], and a layer's k [L, H, attention_dim]
    and v [L, H, hidden_dim] each, or none unless `keep`.

    offsets int64 [B + 1]. caches: one a layer, which share lengths, table and timestamps. call: as
    in `hstu_attention_cached`, but for the biases, which are the layers'. Without `states` the last
    layer makes keys and values alone: out is then what enters it, or empty where that is x.
    """
    first, weights = caches[0], layers[0]
    steps = cells = times = cached_times = None
    if weights.time_bias is not None:
        steps, cells = time_steps(weights.time_bias.size(1), call.time_bias_divisor)
    if weights.time_bias is not None or call.mask.timestamp_mask:
        times, cached_times = _contiguous(call.timestamps), _contiguous(first.timestamps)
        if times is None or cached_times is None:
            raise ValueError(
                "timestamp_mask and time_bias need the timestamps of new and of cached tokens"
            )
    out: tuple[Tensor, list[Tensor], list[Tensor]] = torch.ops.tzgen_native.stu_layers.default(
        x.contiguous(),
        [parameter for layer in layers for parameter in layer.linear],
        shape.num_heads,
        shape.attention_dim,
        shape.hidden_dim,
        shape.num_heads if shape.by_head else 1,
        shape.activated,
        shape.output_form == "CONCAT_UOX",
        shape.eps,
        offsets.contiguous(),
        [cache.k for cache in caches],
        [cache.v for cache in caches],
        first.lengths.contiguous(),
        _contiguous(first.table),
        cached_times,
        _contiguous(call.num_targets),
        times,
        _tables([layer.position_bias for layer in layers], x.dtype),
        _tables([layer.time_bias for layer in layers], x.dtype),
        steps,
        cells,
        call.alpha,
        call.divisor,
        mask_fields(call.mask),
        keep,
        states,
    )
    return out


def _tables(tables: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    return [table.to(dtype).contiguous() for table in tables if table is not None]


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
