# SPDX-License-Identifier: Apache-2.0
"""Sequential transduction units, the layers of HSTU.

    xn        = Norm(x)                                    x [L, D]
    u,v,q,k   = split(xn W_uvqk + b)                       SiLU on the letters in `activated`
    O         = hstu_attention(q, k, v)                    ops.hstu_attention: mask, alpha, N, rab
    y         = concat[u, O, u * Norm(O)]  or  u * Norm(O)     (CONCAT_UOX | UX)
    out       = x + Dropout(y) W_o

N is a constant (`scaling_seqlen`, else the model's max_seq_len), never the batch's longest row.
Presets: PRODUCTION is TorchEasyRec's and Meta's trained-at-scale layer; PAPER is Zhai et al. 2024
(all four activated, UX, alpha 1, relative bias). MTGR replaces both norms by one weight a domain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzgen.modules.norms import DomainLayerNorm, HeadNorm
from tzgen.modules.sequence import NUM_DOMAINS, TokenSequence
from tzgen.ops.hstu_attention import MaskSpec, hstu_attention

EPS = 1e-6


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
    """The proto STU. `recompute_*` and `sort_by_length` only trade memory for time and change
    nothing here."""

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
class _Preset:
    activated: str
    output_form: str
    alpha: Callable[[int], float]


PRESETS: Mapping[str, _Preset] = MappingProxyType(
    {
        "PRODUCTION": _Preset("u", "CONCAT_UOX", lambda attention_dim: attention_dim**-0.5),
        "PAPER": _Preset("uvqk", "UX", lambda attention_dim: 1.0),
    }
)


class RelativeBias(nn.Module):
    """The learned tables of ops.hstu_attention.bias, one row a head."""

    def __init__(self, options: RelativeBiasOptions, *, num_heads: int, max_seq_len: int) -> None:
        super().__init__()
        reach = options.max_seq_len or max_seq_len
        self.time_bucket_divisor = options.time_bucket_divisor
        self.position = self._table(num_heads, 2 * reach - 1) if options.use_position else None
        buckets = options.num_time_buckets + 1
        self.time = self._table(num_heads, buckets) if options.use_time else None

    @staticmethod
    def _table(num_heads: int, columns: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(num_heads, columns).normal_(mean=0.0, std=0.02))


class STULayer(nn.Module):
    """One layer. `contextual_len` tokens start every row; `max_seq_len` is N by default."""

    def __init__(
        self,
        options: STUOptions,
        *,
        max_seq_len: int,
        contextual_len: int = 0,
        mtgr: MTGROptions | None = None,
        kernel: str = "PYTORCH",
    ) -> None:
        super().__init__()
        preset = PRESETS[options.preset]
        self.activated = preset.activated if options.activated is None else options.activated
        self.output_form = options.output_form or preset.output_form
        self.alpha = options.attn_alpha or preset.alpha(options.attention_dim)
        self.divisor = options.scaling_seqlen if options.scaling_seqlen > 0 else max_seq_len
        self.dropout, self.kernel = options.output_dropout_ratio, kernel
        self.num_heads = options.num_heads
        width = options.num_heads * options.hidden_dim
        self.widths = [width, width, *[options.num_heads * options.attention_dim] * 2]  # u, v, q, k
        self.mask = _mask(options, contextual_len, mtgr)
        self.by_domain = mtgr is not None and mtgr.group_layer_norm
        if self.by_domain and options.use_group_norm:
            raise ValueError("use_group_norm and mtgr.group_layer_norm both norm O: choose one")
        dim = options.embedding_dim
        self.input_norm = self._norm(dim)
        self.uvqk = nn.Linear(dim, sum(self.widths))
        self.output_norm: nn.Module = self._norm(width)
        if options.use_group_norm:
            self.output_norm = HeadNorm(options.num_heads, options.hidden_dim, eps=EPS)
        parts = 3 if self.output_form == "CONCAT_UOX" else 1
        self.output = nn.Linear(width * parts, dim, bias=False)
        nn.init.xavier_uniform_(self.uvqk.weight)
        nn.init.zeros_(self.uvqk.bias)
        nn.init.xavier_uniform_(self.output.weight)
        self.relative_bias: RelativeBias | None = None
        if options.relative_bias is not None:
            self.relative_bias = RelativeBias(
                options.relative_bias, num_heads=options.num_heads, max_seq_len=max_seq_len
            )

    def _norm(self, dim: int) -> nn.Module:
        if self.by_domain:
            return DomainLayerNorm(NUM_DOMAINS, dim, eps=EPS)
        return nn.LayerNorm(dim, eps=EPS)

    def forward(
        self,
        x: Tensor,
        offsets: Tensor,
        *,
        max_len: int,
        num_targets: Tensor | None = None,
        timestamps: Tensor | None = None,
        domains: Tensor | None = None,
    ) -> Tensor:
        """x [L, D], offsets int64 [B + 1], num_targets int64 [B] -> [L, D].

        timestamps int64 [L] where the mask or the bias reads time, domains int64 [L] (sequence.py)
        with MTGR's norms.
        """
        u, v, q, k = self.project(x, domains)
        attended = self.attend(q, k, v, offsets, max_len, num_targets, timestamps)
        return self.combine(x, u, attended, domains)

    def project(self, x: Tensor, domains: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u [L, H * hidden_dim], v [L, H, hidden_dim], q and k [L, H, attention_dim]."""
        uvqk = self.uvqk(self._normalise(self.input_norm, x, domains))
        if set(self.activated) == set("uvqk"):
            u, v, q, k = torch.split(F.silu(uvqk), self.widths, dim=-1)
        else:
            parts = dict(zip("uvqk", torch.split(uvqk, self.widths, dim=-1), strict=True))
            u, v, q, k = (F.silu(t) if name in self.activated else t for name, t in parts.items())
        heads = (self.num_heads, -1)
        return u, v.unflatten(-1, heads), q.unflatten(-1, heads), k.unflatten(-1, heads)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        offsets: Tensor,
        max_len: int,
        num_targets: Tensor | None,
        timestamps: Tensor | None,
    ) -> Tensor:
        """O [L, H * hidden_dim]."""
        bias = self.relative_bias
        reads_time = self.mask.timestamp_mask or (bias is not None and bias.time is not None)
        return hstu_attention(
            q,
            k,
            v,
            offsets,
            max_len=max_len,
            alpha=self.alpha,
            divisor=float(self.divisor),
            mask=self.mask,
            num_targets=num_targets,
            timestamps=timestamps if reads_time else None,
            position_bias=None if bias is None else bias.position,
            time_bias=None if bias is None else bias.time,
            time_bias_divisor=0.301 if bias is None else bias.time_bucket_divisor,
            kernel=self.kernel,
        ).flatten(1)

    def combine(self, x: Tensor, u: Tensor, attended: Tensor, domains: Tensor | None) -> Tensor:
        """x + Dropout(y) W_o, [L, D]."""
        gated = u * self._normalise(self.output_norm, attended, domains)
        if self.output_form == "CONCAT_UOX":
            gated = torch.cat([u, attended, gated], dim=-1)
        return x + self.output(F.dropout(gated, self.dropout, training=self.training))

    def _normalise(self, norm: nn.Module, x: Tensor, domains: Tensor | None) -> Tensor:
        out: Tensor = norm(x, domains) if isinstance(norm, DomainLayerNorm) else norm(x)
        return out


def _mask(options: STUOptions, contextual_len: int, mtgr: MTGROptions | None) -> MaskSpec:
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


class STUStack(nn.Module):
    """`num_layers` layers of one shape."""

    def __init__(
        self,
        options: STUOptions,
        *,
        num_layers: int,
        max_seq_len: int,
        contextual_len: int = 0,
        mtgr: MTGROptions | None = None,
        truncation: Truncation | None = None,
        kernel: str = "PYTORCH",
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            STULayer(
                options,
                max_seq_len=max_seq_len,
                contextual_len=contextual_len,
                mtgr=mtgr,
                kernel=kernel,
            )
            for _ in range(num_layers)
        )
        self.by_domain = mtgr is not None and mtgr.group_layer_norm
        if truncation is not None and not 0 < truncation.split_layer < num_layers:
            raise ValueError(
                f"attn_truncation_split_layer {truncation.split_layer} must leave layers on both "
                f"sides of the cut: between 0 and {num_layers}"
            )
        self.truncation = truncation

    def forward(self, tokens: TokenSequence) -> TokenSequence:
        """The tokens with the states of the last layer; of the history, those that are left."""
        if self.truncation is None:
            return self._run(tokens, 0, len(self.layers))
        tokens = self._run(tokens, 0, self.truncation.split_layer)
        # in a graph or on a GPU, a number that only the device knows would stop the pipeline
        ask_device = tokens.x.is_cpu and not torch.compiler.is_compiling()
        tokens = tokens.truncated(self.truncation.tail_len, ask_device=ask_device)
        return self._run(tokens, self.truncation.split_layer, len(self.layers))

    def _run(self, tokens: TokenSequence, start: int, stop: int) -> TokenSequence:
        """Layers [start, stop)."""
        x = tokens.x
        domains = tokens.domains if self.by_domain else None
        for layer in self.layers[start:stop]:
            x = layer(
                x,
                tokens.offsets,
                max_len=tokens.max_len,
                num_targets=tokens.num_targets,
                timestamps=tokens.timestamps,
                domains=domains,
            )
        return tokens.with_x(x)
