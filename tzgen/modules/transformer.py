# SPDX-License-Identifier: Apache-2.0
"""T5's layers over ragged rows: an encoder or a causal stack, and a decoder of short dense rows.

    x  <-  x + Dropout(Attend(RMSNorm(x)))            scale 1, no biases in any linear layer
    x  <-  x + Dropout(CrossAttend(RMSNorm(x)))       decoder
    x  <-  x + Dropout(W_o ReLU(W_i RMSNorm(x)))
    out = Dropout(RMSNorm(x))                         after the last layer

One table of relative bias serves all layers of a stack; cross-attention has none. Dropout is on the
tokens and on what a block adds, not on attention weights or inside the feed-forward block.
L tokens of all rows, B rows, N decoded rows of S places, W beams of a row, H heads, D width.

Source: Raffel et al. 2020 (T5), sections 2.1 and 3.1.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzgen.ops import jagged
from tzgen.ops.dropout import dropout
from tzgen.ops.softmax_attention import (
    BeamKeys,
    MaskSpec,
    SharedKeys,
    distance_table,
    softmax_attention,
    softmax_attention_step,
)

EPS = 1e-6


@dataclass(frozen=True)
class TransformerOptions:
    """The proto TransformerConfig."""

    d_model: int
    num_heads: int
    d_kv: int
    d_ff: int
    num_layers: int
    dropout_ratio: float
    num_buckets: int
    max_distance: int


class RelativeBuckets(nn.Module):
    """T5's bias by bucketed distance, one row a head."""

    def __init__(self, options: TransformerOptions, *, bidirectional: bool) -> None:
        super().__init__()
        self.max_distance, self.bidirectional = options.max_distance, bidirectional
        shape = (options.num_heads, options.num_buckets)
        self.weight = nn.Parameter(torch.randn(shape) * options.d_model**-0.5)

    def forward(self) -> Tensor:
        """By distance, [H, 2 * max_distance + 1], as `softmax_attention` takes it."""
        return distance_table(
            self.weight, max_distance=self.max_distance, bidirectional=self.bidirectional
        )


class Attention(nn.Module):
    """The four projections of one attention, T5's start values."""

    def __init__(self, options: TransformerOptions) -> None:
        super().__init__()
        dim, inner = options.d_model, options.num_heads * options.d_kv
        self.num_heads = options.num_heads
        self.q, self.kv, self.out = (
            _linear(dim, inner),
            _linear(dim, 2 * inner),
            _linear(inner, dim),
        )
        nn.init.normal_(self.q.weight, std=(dim * options.d_kv) ** -0.5)

    def query(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., H, d_kv]."""
        return self.q(x).unflatten(-1, (self.num_heads, -1))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[..., D] -> k and v [..., H, d_kv]."""
        k, v = self.kv(x).unflatten(-1, (2 * self.num_heads, -1)).chunk(2, dim=-2)
        return k, v

    def merge(self, attended: Tensor) -> Tensor:
        """[..., H, d_kv] -> [..., D]."""
        out: Tensor = self.out(attended.flatten(-2))
        return out


class FeedForward(nn.Module):
    """W_o ReLU(W_i x)."""

    def __init__(self, options: TransformerOptions) -> None:
        super().__init__()
        self.into = _linear(options.d_model, options.d_ff)
        self.out = _linear(options.d_ff, options.d_model)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(F.relu(self.into(x)))
        return out


class Block(nn.Module):
    """One layer: self-attention, cross-attention with `cross`, feed-forward."""

    def __init__(self, options: TransformerOptions, *, cross: bool) -> None:
        super().__init__()
        names = ("attend", "cross", "feed") if cross else ("attend", "feed")
        self.norms = nn.ModuleDict({name: nn.RMSNorm(options.d_model, eps=EPS) for name in names})
        self.attend = Attention(options)
        self.cross = Attention(options) if cross else None
        self.feed = FeedForward(options)
        self.ratio = options.dropout_ratio

    def add(self, x: Tensor, update: Tensor) -> Tensor:
        """x + Dropout(update)."""
        return x + dropout(update, self.ratio, training=self.training)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.feed(self.norms["feed"](x)))


class RaggedTransformer(nn.Module):
    """Layers over ragged rows: every token sees its row, or with `causal` what is not after it."""

    def __init__(
        self, options: TransformerOptions, *, causal: bool, kernel: str = "PYTORCH"
    ) -> None:
        super().__init__()
        self.bias = RelativeBuckets(options, bidirectional=not causal)
        self.layers = nn.ModuleList(Block(options, cross=False) for _ in range(options.num_layers))
        self.norm = nn.RMSNorm(options.d_model, eps=EPS)
        self.mask = MaskSpec() if causal else None
        self.ratio, self.kernel = options.dropout_ratio, kernel

    def forward(self, x: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
        """x [L, D], offsets int64 [B + 1] -> [L, D]."""
        return self._run(x, offsets, max_len, None)

    def prefill(
        self, x: Tensor, offsets: Tensor, *, max_len: int
    ) -> tuple[Tensor, list[SharedKeys]]:
        """`forward`, and every layer's keys and values for steps that go on from these rows."""
        kept: list[SharedKeys] = []
        return self._run(x, offsets, max_len, kept), kept

    def _run(
        self, x: Tensor, offsets: Tensor, max_len: int, kept: list[SharedKeys] | None
    ) -> Tensor:
        table = self.bias()
        x = dropout(x, self.ratio, training=self.training)
        for layer in self._blocks():
            normed = layer.norms["attend"](x)
            k, v = layer.attend.keys_values(normed)
            if kept is not None:
                kept.append(SharedKeys.pad(k, v, offsets, max_len=max_len))
            attended = softmax_attention(
                layer.attend.query(normed),
                k,
                v,
                offsets,
                max_len=max_len,
                scale=1.0,
                mask=self.mask,
                position_bias=table.to(k.dtype),
                kernel=self.kernel,
            )
            x = layer.feed_forward(layer.add(x, layer.attend.merge(attended)))
        return dropout(self.norm(x), self.ratio, training=self.training)

    def step(
        self, x: Tensor, shared: Sequence[SharedKeys], own: Sequence[BeamKeys] | None, *, room: int
    ) -> tuple[Tensor, list[BeamKeys]]:
        """A new token of each beam, [B, W, D], behind `shared` and the beams' own keys (None at the
        first new token) -> its state [B, W, D] and the beams' keys with its own."""
        return _step(self._blocks(), self.norm, self.bias(), x, shared, own, room, cross=False)

    def reorder(self, own: Sequence[BeamKeys], rows: Tensor, beams: int) -> list[BeamKeys]:
        """`reordered`, for whom the layers are a backbone like others."""
        return reordered(own, rows, beams)

    def _blocks(self) -> list[Block]:
        return [layer for layer in self.layers if isinstance(layer, Block)]


class Decoder(nn.Module):
    """Causal layers over N dense rows of S places that also attend to ragged encoded rows."""

    def __init__(self, options: TransformerOptions, *, kernel: str = "PYTORCH") -> None:
        super().__init__()
        self.bias = RelativeBuckets(options, bidirectional=False)
        self.layers = nn.ModuleList(Block(options, cross=True) for _ in range(options.num_layers))
        self.norm = nn.RMSNorm(options.d_model, eps=EPS)
        self.ratio, self.kernel = options.dropout_ratio, kernel

    def forward(self, x: Tensor, encoded: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
        """x [N, S, D], encoded [L, D] of N rows, offsets int64 [N + 1] -> [N, S, D]."""
        rows, places = x.size(0), x.size(1)
        bias = _causal_bias(self.bias(), places).to(x.dtype)
        queries = torch.arange(rows + 1, device=x.device) * places
        x = dropout(x, self.ratio, training=self.training)
        for layer in self._blocks():
            normed = layer.norms["attend"](x)
            q = layer.attend.query(normed).transpose(1, 2)
            k, v = (part.transpose(1, 2) for part in layer.attend.keys_values(normed))
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
            x = layer.add(x, layer.attend.merge(seen.transpose(1, 2)))
            cross = _cross_of(layer)
            k, v = cross.keys_values(encoded)
            attended = softmax_attention(
                cross.query(layer.norms["cross"](x)).flatten(0, 1),
                k,
                v,
                queries,
                max_len=places,
                scale=1.0,
                key_offsets=offsets,
                max_key_len=max_len,
                kernel=self.kernel,
            )
            x = layer.add(x, cross.merge(attended.unflatten(0, (rows, places))))
            x = layer.feed_forward(x)
        return dropout(self.norm(x), self.ratio, training=self.training)

    def prefill(self, encoded: Tensor, offsets: Tensor, *, max_len: int) -> list[SharedKeys]:
        """Every layer's keys and values of the encoded rows, made once a request."""
        pairs = (_cross_of(layer).keys_values(encoded) for layer in self._blocks())
        return [SharedKeys.pad(k, v, offsets, max_len=max_len) for k, v in pairs]

    def step(
        self, x: Tensor, shared: Sequence[SharedKeys], own: Sequence[BeamKeys] | None, *, room: int
    ) -> tuple[Tensor, list[BeamKeys]]:
        """A new token of each beam, [B, W, D] -> its state, and the beams' keys with its own."""
        return _step(self._blocks(), self.norm, self.bias(), x, shared, own, room, cross=True)

    def _blocks(self) -> list[Block]:
        return [layer for layer in self.layers if isinstance(layer, Block)]


def _step(
    layers: Sequence[Block],
    norm: nn.Module,
    table: Tensor,
    x: Tensor,
    shared: Sequence[SharedKeys],
    own: Sequence[BeamKeys] | None,
    room: int,
    *,
    cross: bool,
) -> tuple[Tensor, list[BeamKeys]]:
    """`shared` is what self-attention goes on from, or with `cross` what is attended to beside."""
    kept: list[BeamKeys] = []
    for index, layer in enumerate(layers):
        normed = layer.norms["attend"](x)
        q = layer.attend.query(normed)
        k, v = layer.attend.keys_values(normed)
        before = BeamKeys.room(q, v.size(-1), tokens=room) if own is None else own[index]
        kept.append(before.appended(k, v))
        seen = softmax_attention_step(
            q,
            scale=1.0,
            shared=None if cross else shared[index],
            own=kept[-1],
            position_bias=table,
        )
        x = layer.add(x, layer.attend.merge(seen))
        if cross:
            other = _cross_of(layer)
            q = other.query(layer.norms["cross"](x))
            seen = softmax_attention_step(q, scale=1.0, shared=shared[index])
            x = layer.add(x, other.merge(seen))
        x = layer.feed_forward(x)
    out: Tensor = norm(x)
    return out, kept


def reordered(own: Sequence[BeamKeys], rows: Tensor, beams: int) -> list[BeamKeys]:
    """For `beams` beams a row that go on from beams `rows`, int64 [B * beams], counted over all
    rows (decoding.BeamState)."""
    batch, before = own[0].k.shape[:2]
    parents = rows.view(batch, beams) % before
    return [keys.reordered(parents) for keys in own]


def ragged_tokens(
    start: Tensor, tokens: Tensor, lengths: Tensor, *, max_tokens: int
) -> tuple[Tensor, Tensor, int]:
    """Rows [start | tokens]: start [B, D], tokens [L, D], lengths int64 [B] of tokens a row ->
    x [B + L, D], offsets int64 [B + 1], the longest row a host number can promise."""
    ones = torch.ones_like(lengths)
    places = jagged.concat_places([ones, lengths], [start.size(0), tokens.size(0)])
    x = jagged.concat([start.to(tokens.dtype), tokens], places)
    return x, jagged.offsets_of(lengths + 1), max_tokens + 1


def _linear(into: int, out: int) -> nn.Linear:
    """Without bias, weights of standard deviation into ** -0.5."""
    layer = nn.Linear(into, out, bias=False)
    nn.init.normal_(layer.weight, std=into**-0.5)
    return layer


def _cross_of(layer: Block) -> Attention:
    assert layer.cross is not None, "a decoder's block has cross-attention"
    return layer.cross


def _causal_bias(table: Tensor, places: int) -> Tensor:
    """[H, 2P - 1] by distance -> [H, S, S], -inf at keys after the query."""
    reach = (table.size(1) - 1) // 2
    at = torch.arange(places, device=table.device)
    distance = at - at[:, None]  # place of the key - place of the query
    bias = table[:, distance.clamp(-reach, reach) + reach]
    return bias.masked_fill(distance > 0, float("-inf"))
