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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzgen.modules.norms import DomainLayerNorm, HeadNorm
from tzgen.modules.sequence import NUM_DOMAINS, TokenSequence
from tzgen.modules.stu_options import (
    PRESETS,
    MTGROptions,
    RelativeBiasOptions,
    STUOptions,
    mask_spec,
)
from tzgen.ops.dropout import dropout
from tzgen.ops.hstu_attention import hstu_attention
from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention_cached import CachedKV, hstu_attention_cached
from tzgen.ops.stu_cached import LayerShape, LayerWeights
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
        u, v, q, k = self._projected(x, domains, "uvqk")
        heads = (self.num_heads, -1)
        return u, v.unflatten(-1, heads), q.unflatten(-1, heads), k.unflatten(-1, heads)

    def _projected(
        self, x: Tensor, domains: Tensor | None, wanted: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u, v, q, k [L, width], those that are not `wanted` without columns where that saves
        work."""
        norm, activated = self.input_norm, self.activated.replace("u", "")
        if isinstance(norm, DomainLayerNorm):
            parts = torch.split(self.uvqk(norm(x, domains)), self.widths, dim=-1)
            named = zip("uvqk", parts, strict=True)
            u, v, q, k = (F.silu(part) if name in activated else part for name, part in named)
            return u, v, q, k
        assert isinstance(norm, nn.LayerNorm), "x has one norm, or one a domain"
        return stu_input(
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
            wanted=wanted,
        )

    def keys_values(self, x: Tensor, domains: Tensor | None) -> tuple[Tensor, Tensor]:
        """k [L, H, attention_dim] and v [L, H, hidden_dim] as `project` gives them, alone."""
        _, v, _, k = self._projected(x, domains, "vk")
        return k.unflatten(-1, (self.num_heads, -1)), v.unflatten(-1, (self.num_heads, -1))

    def cached(
        self, x: Tensor, tokens: TokenSequence, cache: CachedKV
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` of new tokens x [L, D] behind those in `cache` -> [L, D], their k and v.

        Of `tokens`, all but x is read.
        """
        domains = tokens.domains if self.by_domain else None
        u, v, q, k = self.project(x, domains)
        attended = self.attend_cached(q, k, v, tokens, cache)
        return self.combine(x, u, attended, domains), k, v

    def call(self, tokens: TokenSequence) -> Call:
        """Attention of new tokens as the ops take it."""
        constants = self._attention_constants(tokens.num_targets, tokens.timestamps)
        del constants["kernel"]
        return Call(max_len=tokens.max_len, **constants)

    @property
    def shape(self) -> LayerShape:
        """The constants of ops.stu_cached."""
        return LayerShape(
            num_heads=self.num_heads,
            attention_dim=self.widths[2] // self.num_heads,
            hidden_dim=self.widths[0] // self.num_heads,
            activated=self.activated,
            output_form=self.output_form,
            by_head=isinstance(self.output_norm, HeadNorm),
            eps=EPS,
        )

    def weights(self) -> LayerWeights:
        """The parameters of ops.stu_cached."""
        first, last, uvqk = self.input_norm, self.output_norm, self.uvqk
        assert isinstance(first, nn.LayerNorm), "x has one norm, or one a domain"
        assert isinstance(last, nn.LayerNorm | HeadNorm), "O has one norm, by head or not"
        bias = self.relative_bias
        return LayerWeights(
            (
                first.weight,
                first.bias,
                uvqk.weight,
                uvqk.bias,
                last.weight,
                last.bias,
                self.output.weight,
            ),
            position_bias=None if bias is None else bias.position,
            time_bias=None if bias is None else bias.time,
        )

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
