# SPDX-License-Identifier: Apache-2.0
"""What an STU layer and stack are built from: options, presets, the mask that follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tzgen.ops.hstu_attention import MaskSpec


@dataclass(frozen=True)
class RelativeBiasOptions:
    """The proto RelativeBias."""

    num_time_buckets: int
    use_position: bool
    use_time: bool
    time_bucket_divisor: float
    max_seq_len: int | None


@dataclass(frozen=True)
class STUOptions:
    """The proto STU. `recompute_*` say what backward keeps; `recompute_uvqk` None: on CUDA.
    `sort_by_length` is only an order of work and changes nothing here."""

    embedding_dim: int
    num_heads: int
    hidden_dim: int
    attention_dim: int
    output_dropout_ratio: float
    max_attn_len: int | None
    attn_alpha: float | None
    use_group_norm: bool
    contextual_seq_len: int
    sla_k1: int | None
    sla_k2: int | None
    scaling_seqlen: int
    recompute_normed_x: bool
    recompute_uvqk: bool | None
    recompute_y: bool
    preset: str
    activated: str | None
    output_form: str | None
    relative_bias: RelativeBiasOptions | None
    append_stable: bool
    window_keeps_contextual: bool
    full_attn_tail: int


@dataclass(frozen=True)
class MTGROptions:
    """The proto MTGR."""

    group_layer_norm: bool
    timestamp_mask: bool
    realtime_len: int | None


@dataclass(frozen=True)
class Preset:
    activated: str
    output_form: str
    alpha: Callable[[int], float]


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "PRODUCTION": Preset("u", "CONCAT_UOX", lambda attention_dim: attention_dim**-0.5),
        "PAPER": Preset("uvqk", "UX", lambda attention_dim: 1.0),
    }
)


def mask_spec(options: STUOptions, contextual_len: int, mtgr: MTGROptions | None) -> MaskSpec:
    """The mask of a layer whose rows start with `contextual_len` contextual tokens."""
    given = options.contextual_seq_len
    by_time = mtgr is not None and mtgr.timestamp_mask
    return MaskSpec(
        contextual_len=contextual_len if given < 0 else given,
        max_attn_len=options.max_attn_len or 0,
        window_keeps_contextual=options.window_keeps_contextual,
        append_stable=options.append_stable,
        timestamp_mask=by_time,
        realtime_len=(mtgr.realtime_len or 0) if mtgr is not None and by_time else 0,
        sla_k1=options.sla_k1 or 0,
        sla_k2=options.sla_k2 or 0,
        full_attn_tail=options.full_attn_tail,
    )


@dataclass(frozen=True)
class Truncation:
    """Layers from `split_layer` on run without history but its last `tail_len` tokens."""

    split_layer: int
    tail_len: int
