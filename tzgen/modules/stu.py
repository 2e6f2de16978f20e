# SPDX-License-Identifier: Apache-2.0
"""Sequential transduction units, the layers of HSTU.

    xn        = Norm(x)                                    x [L, D]
    u,v,q,k   = split(xn W_uvqk + b)                       SiLU on the letters in `activated`;
                                                           on u where y is made
    O         = hstu_attention(q, k, v)                    ops.hstu_attention: mask, alpha, N, rab
    y         = concat[u, O, u * Norm(O)]  or  u * Norm(O)     (CONCAT_UOX | UX)
    out       = x + Dropout(y) W_o

N is a constant (`scaling_seqlen`, else the model's max_seq_len), never the batch's longest row.
Presets: PRODUCTION is TorchEasyRec's and Meta's trained-at-scale layer; PAPER is Zhai et al. 2024
(all four activated, UX, alpha 1, relative bias). MTGR replaces both norms by one weight a domain;
its layers run on the modules here, all others on the fused ops of ops.stu_linear.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzgen.modules.kv_cache import CacheShape
from tzgen.modules.norms import DomainLayerNorm, HeadNorm
from tzgen.modules.sequence import NUM_DOMAINS, TokenSequence
from tzgen.modules.stu_cache import LayerCaches
from tzgen.modules.stu_options import (
    PRESETS,
    MTGROptions,
    RelativeBiasOptions,
    STUOptions,
    Truncation,
    mask_spec,
)
from tzgen.ops.dropout import dropout
from tzgen.ops.hstu_attention import hstu_attention
from tzgen.ops.hstu_attention_cached import CachedKV, hstu_attention_cached
from tzgen.ops.stu_linear import recomputed, stu_input, stu_output

EPS = 1e-6


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
        self.recompute_normed_x, self.recompute_y = options.recompute_normed_x, options.recompute_y
        self.recompute_uvqk = options.recompute_uvqk
        self.num_heads = options.num_heads
        width = options.num_heads * options.hidden_dim
        self.widths = [width, width, *[options.num_heads * options.attention_dim] * 2]  # u, v, q, k
        self.mask = mask_spec(options, contextual_len, mtgr)
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
        with self._given_up(x, domains, (u, v, q, k)):
            attended = self.attend(q, k, v, offsets, max_len, num_targets, timestamps)
            return self.combine(x, u, attended, domains)

    def project(self, x: Tensor, domains: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u [L, H * hidden_dim] before its SiLU, which `combine` applies; v [L, H, hidden_dim],
        q and k [L, H, attention_dim] as attention reads them."""
        norm, activated = self.input_norm, self.activated.replace("u", "")
        if isinstance(norm, DomainLayerNorm):
            parts = torch.split(self.uvqk(norm(x, domains)), self.widths, dim=-1)
            named = zip("uvqk", parts, strict=True)
            u, v, q, k = (F.silu(part) if name in activated else part for name, part in named)
        else:
            assert isinstance(norm, nn.LayerNorm), "x has one norm, or one a domain"
            u, v, q, k = stu_input(
                x,
                norm.weight,
                norm.bias,
                self.uvqk.weight,
                self.uvqk.bias,
                widths=self.widths,
                activated=activated,
                eps=EPS,
                recompute_normed_x=self.recompute_normed_x,
                recompute_uvqk=self._recomputes_uvqk(x),
                kernel=self.kernel,
            )
        heads = (self.num_heads, -1)
        return u, v.unflatten(-1, heads), q.unflatten(-1, heads), k.unflatten(-1, heads)

    def _recomputes_uvqk(self, x: Tensor) -> bool:
        """As configured; by default on a GPU, whose memory is the scarcer thing."""
        return x.is_cuda if self.recompute_uvqk is None else self.recompute_uvqk

    def _given_up(
        self, x: Tensor, domains: Tensor | None, uvqk: tuple[Tensor, Tensor, Tensor, Tensor]
    ) -> AbstractContextManager[None]:
        """Inside, autograd keeps nothing of u, v, q, k if they are to be recomputed."""
        if not (torch.is_grad_enabled() and self._recomputes_uvqk(x)):
            return nullcontext()
        parameters = (self.uvqk.weight, self.uvqk.bias, *self.input_norm.parameters())
        return recomputed(lambda: self.project(x, domains), uvqk, (x, *parameters))

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
        constants = self._attention_constants(num_targets, timestamps)
        attended = hstu_attention(q, k, v, offsets, max_len=max_len, **constants)
        return attended.flatten(1)

    def attend_cached(
        self, q: Tensor, k: Tensor, v: Tensor, tokens: TokenSequence, cache: CachedKV
    ) -> Tensor:
        """O of new tokens, [L, H * hidden_dim]; they stand behind those in `cache`."""
        constants = self._attention_constants(tokens.num_targets, tokens.timestamps)
        attended = hstu_attention_cached(
            q, k, v, tokens.offsets, cache, max_len=tokens.max_len, **constants
        )
        return attended.flatten(1)

    @property
    def reads_time(self) -> bool:
        """Whether attention reads timestamps."""
        bias = self.relative_bias
        return self.mask.timestamp_mask or (bias is not None and bias.time is not None)

    def _attention_constants(
        self, num_targets: Tensor | None, timestamps: Tensor | None
    ) -> dict[str, Any]:
        """Arguments that attention with and without a cache share."""
        bias = self.relative_bias
        return {
            "alpha": self.alpha,
            "divisor": float(self.divisor),
            "mask": self.mask,
            "num_targets": num_targets,
            "timestamps": timestamps if self.reads_time else None,
            "position_bias": None if bias is None else bias.position,
            "time_bias": None if bias is None else bias.time,
            "time_bias_divisor": 0.301 if bias is None else bias.time_bucket_divisor,
            "kernel": self.kernel,
        }

    def combine(self, x: Tensor, u: Tensor, attended: Tensor, domains: Tensor | None) -> Tensor:
        """x + Dropout(y) W_o, [L, D]; u and attended [L, H * hidden_dim], u before its SiLU."""
        norm, activate_u = self.output_norm, "u" in self.activated
        if isinstance(norm, DomainLayerNorm):
            gate = F.silu(u) if activate_u else u
            y = gate * norm(attended, domains)
            if self.output_form == "CONCAT_UOX":
                y = torch.cat([gate, attended, y], dim=-1)
            return x + self.output(dropout(y, self.dropout, training=self.training))
        assert isinstance(norm, nn.LayerNorm | HeadNorm), "O has one norm, by head or not"
        return stu_output(
            attended,
            u,
            x,
            norm.weight,
            norm.bias,
            self.output.weight,
            output_form=self.output_form,
            activate_u=activate_u,
            group_norm_heads=self.num_heads if isinstance(norm, HeadNorm) else None,
            eps=EPS,
            dropout=self.dropout,
            training=self.training,
            recompute_y=self.recompute_y,
            kernel=self.kernel,
        )


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

    def prefill(
        self, tokens: TokenSequence, *, states: bool = True
    ) -> tuple[TokenSequence, LayerCaches]:
        """`forward` of rows without candidates, and the keys and values of every layer.

        `states` False leaves out what only the last layer's states need: the tokens that come back
        are then those that enter it.
        """
        domains = tokens.domains if self.by_domain else None
        caches: list[CachedKV] = []
        for index, layer in enumerate(self._stu_layers()):
            if self.truncation is not None and index == self.truncation.split_layer:
                tokens = tokens.truncated(self.truncation.tail_len, ask_device=True)
                domains = tokens.domains if self.by_domain else None
            u, v, q, k = layer.project(tokens.x, domains)
            caches.append(_kept(layer, k, v, tokens))
            if states or index + 1 < len(self.layers):
                attended = layer.attend(
                    q, k, v, tokens.offsets, tokens.max_len, tokens.num_targets, tokens.timestamps
                )
                tokens = tokens.with_x(layer.combine(tokens.x, u, attended, domains))
        return tokens, tuple(caches)

    def append(
        self, tokens: TokenSequence, caches: LayerCaches, *, states: bool = True
    ) -> tuple[TokenSequence, LayerCaches]:
        """States of new events (stu_cache.continued), and their keys and values in every layer.

        `states` as in `prefill`.
        """
        if self.truncation is not None:
            raise ValueError("attention truncation cuts events off when newer ones arrive")
        domains = tokens.domains if self.by_domain else None
        new: list[CachedKV] = []
        for layer, cache in zip(self._stu_layers(), caches, strict=True):
            u, v, q, k = layer.project(tokens.x, domains)
            new.append(_kept(layer, k, v, tokens))
            if states or len(new) < len(self.layers):
                attended = layer.attend_cached(q, k, v, tokens, cache)
                tokens = tokens.with_x(layer.combine(tokens.x, u, attended, domains))
        return tokens, tuple(new)

    def score(self, tokens: TokenSequence, caches: LayerCaches) -> TokenSequence:
        """States of candidates (stu_cache.continued) behind the cached rows."""
        domains = tokens.domains if self.by_domain else None
        for layer, cache in zip(self._stu_layers(), caches, strict=True):
            u, v, q, k = layer.project(tokens.x, domains)
            attended = layer.attend_cached(q, k, v, tokens, cache)
            tokens = tokens.with_x(layer.combine(tokens.x, u, attended, domains))
        return tokens

    @property
    def orders_by_time(self) -> bool:
        """Whether events see what is earlier in time, wherever it stands."""
        return any(layer.mask.timestamp_mask for layer in self._stu_layers())

    def cache_shape(self, *, page_size: int = 64, dtype: torch.dtype = torch.float32) -> CacheShape:
        """The pages that this stack's keys and values go into."""
        layer = self._stu_layers()[0]
        return CacheShape(
            num_layers=len(self.layers),
            num_heads=layer.num_heads,
            attention_dim=layer.widths[2] // layer.num_heads,
            hidden_dim=layer.widths[0] // layer.num_heads,
            page_size=page_size,
            dtype=dtype,
            timestamps=layer.reads_time,
        )

    def _stu_layers(self) -> list[STULayer]:
        return [cast(STULayer, layer) for layer in self.layers]


def _kept(layer: STULayer, k: Tensor, v: Tensor, tokens: TokenSequence) -> CachedKV:
    """Keys and values of these tokens as a contiguous cache: k and v share memory with u and q."""
    return CachedKV(
        k.contiguous(),
        v.contiguous(),
        tokens.offsets.diff(),
        tokens.max_len,
        timestamps=tokens.timestamps if layer.reads_time else None,
    )
