# SPDX-License-Identifier: Apache-2.0
"""A stack of STU layers: over whole rows, and over new tokens behind cached ones.

    forward    whole rows                                  -> states
    prefill    rows without candidates                     -> states, K and V of every layer
    append     new events behind cached rows               -> states, K and V of the new tokens
    score      candidates behind cached rows               -> states

L tokens of all rows, D features. What may be reused when: docs/kv_cache.md.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from tzgen.modules.kv_cache import CacheShape
from tzgen.modules.sequence import TokenSequence
from tzgen.modules.stu_cache import LayerCaches, share_rows
from tzgen.modules.stu_layer import EPS, RelativeBias, STULayer
from tzgen.modules.stu_options import MTGROptions, RelativeBiasOptions, STUOptions, Truncation
from tzgen.ops.hstu_attention_cached import CachedKV
from tzgen.ops.stu_cached import stu_layers_cached, usable

__all__ = [
    "EPS",
    "MTGROptions",
    "RelativeBias",
    "RelativeBiasOptions",
    "STULayer",
    "STUOptions",
    "STUStack",
]


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
        lengths = tokens.offsets.diff()
        if self.truncation is None:
            nothing = (self._nothing_cached(tokens),) * len(self.layers)
            short = self._in_one_call(tokens, nothing, keep=True, states=states)
            if short is not None:
                return tokens.with_x(short[0]), self._all_kept(short, tokens, lengths)
        domains = tokens.domains if self.by_domain else None
        caches: list[CachedKV] = []
        for index, layer in enumerate(self._stu_layers()):
            if self.truncation is not None and index == self.truncation.split_layer:
                tokens = tokens.truncated(self.truncation.tail_len, ask_device=True)
                domains = tokens.domains if self.by_domain else None
                lengths = tokens.offsets.diff()
            if not states and index + 1 == len(self.layers):
                k, v = layer.keys_values(tokens.x, domains)
                caches.append(_kept(layer, k, v, tokens, lengths))
                continue
            u, v, q, k = layer.project(tokens.x, domains)
            caches.append(_kept(layer, k, v, tokens, lengths))
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
        made = self._behind(tokens, caches, keep=True, states=states)
        return tokens.with_x(made[0]), self._all_kept(made, tokens, tokens.offsets.diff())

    def score(self, tokens: TokenSequence, caches: LayerCaches) -> TokenSequence:
        """States of candidates (stu_cache.continued) behind the cached rows."""
        return tokens.with_x(self._behind(tokens, caches, keep=False, states=True)[0])

    def _behind(
        self, tokens: TokenSequence, caches: LayerCaches, *, keep: bool, states: bool
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """New tokens behind cached rows: states of the last layer (without `states`, what enters
        it), and every layer's k and v where they are to `keep`."""
        layers, x = self._stu_layers(), tokens.x
        if len(layers) != len(caches):
            raise ValueError(f"{len(layers)} layers have a cache each; got {len(caches)}")
        short = self._in_one_call(tokens, caches, keep=keep, states=states)
        if short is not None:
            return short
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for index, (layer, cache) in enumerate(zip(layers, caches, strict=True)):
            if states or index + 1 < len(layers):
                x, k, v = layer.cached(x, tokens, cache)
            else:
                k, v = layer.keys_values(x, tokens.domains if self.by_domain else None)
            if keep:
                keys.append(k)
                values.append(v)
        return x, keys, values

    def _in_one_call(
        self, tokens: TokenSequence, caches: LayerCaches, *, keep: bool, states: bool
    ) -> tuple[Tensor, list[Tensor], list[Tensor]] | None:
        """`_behind` by ops.stu_cached; None where it does not apply."""
        layers, x = self._stu_layers(), tokens.x
        first = layers[0]
        if self.training or self.by_domain or not share_rows(caches):
            return None
        if not usable(x, first.uvqk.weight, first.kernel):
            return None
        out, keys, values = stu_layers_cached(
            x,
            [layer.weights() for layer in layers],
            first.shape,
            tokens.offsets,
            caches,
            first.call(tokens),
            keep=keep,
            states=states,
        )
        return (out if states or len(layers) > 1 else x), keys, values

    def _nothing_cached(self, tokens: TokenSequence) -> CachedKV:
        """A layer's cache of rows that begin with `tokens`."""
        shape, times = self._stu_layers()[0].shape, tokens.timestamps[:0]
        return CachedKV(
            tokens.x.new_empty(0, shape.num_heads, shape.attention_dim),
            tokens.x.new_empty(0, shape.num_heads, shape.hidden_dim),
            torch.zeros_like(tokens.lengths),
            0,
            timestamps=times if self._stu_layers()[0].reads_time else None,
        )

    def _all_kept(
        self,
        made: tuple[Tensor, list[Tensor], list[Tensor]],
        tokens: TokenSequence,
        lengths: Tensor,
    ) -> LayerCaches:
        """What `_behind` made, as caches."""
        layers = zip(self._stu_layers(), made[1], made[2], strict=True)
        return tuple(_kept(layer, k, v, tokens, lengths) for layer, k, v in layers)

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
        return cast(list[STULayer], list(self.layers))


def _kept(
    layer: STULayer, k: Tensor, v: Tensor, tokens: TokenSequence, lengths: Tensor
) -> CachedKV:
    """Keys and values of these tokens as a contiguous cache: k and v share memory with u and q."""
    return CachedKV(
        k.contiguous(),
        v.contiguous(),
        lengths,
        tokens.max_len,
        timestamps=tokens.timestamps if layer.reads_time else None,
    )
