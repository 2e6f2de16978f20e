# SPDX-License-Identifier: Apache-2.0
"""One step of decoding with beams: a new token of each beam against keys that are already there.

    shared   keys that all beams of a row have in common and read without a copy: the encoder's
             output, or the prompt of a decoder-only model
    own      keys of the tokens that a beam has generated, the new one's included

One softmax goes over both. All sizes of a step are host numbers and shapes, so that a step asks the
device for nothing and exports; it is plain PyTorch, for inference.
B rows, W beams of each, H heads; M shared and S own places.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tzgen.ops import jagged


@dataclass(frozen=True)
class SharedKeys:
    """k [B, H, M, d], v [B, H, M, e], padded with zeros; lengths int64 [B]. Made once a request."""

    k: Tensor
    v: Tensor
    lengths: Tensor

    @staticmethod
    def pad(k: Tensor, v: Tensor, offsets: Tensor, *, max_len: int) -> SharedKeys:
        """From packed k [L, H, d], v [L, H, e] and offsets int64 [B + 1] of rows up to max_len."""
        lengths = offsets.diff()
        rows, places = jagged.place_index(lengths, k.size(0))
        at = rows * max_len + places

        def padded(x: Tensor) -> Tensor:
            out = x.new_zeros(lengths.size(0) * max_len, *x.shape[1:]).index_copy(0, at, x)
            return out.unflatten(0, (-1, max_len)).transpose(1, 2).contiguous()

        return SharedKeys(padded(k), padded(v), lengths)


@dataclass(frozen=True)
class BeamKeys:
    """k [B, W, H, S, d], v [B, W, H, S, e]: room for S tokens of each beam; the first `length` are
    there, in every beam the same number."""

    k: Tensor
    v: Tensor
    length: int = 0

    @staticmethod
    def room(q: Tensor, value_dim: int, *, tokens: int) -> BeamKeys:
        """For `tokens` tokens of each beam of q [B, W, H, d]."""
        batch, beams, heads, width = q.shape
        k = q.new_zeros(batch, beams, heads, tokens, width)
        return BeamKeys(k, q.new_zeros(batch, beams, heads, tokens, value_dim))

    def appended(self, k: Tensor, v: Tensor) -> BeamKeys:
        """With one more token of each beam, k [B, W, H, d], v [B, W, H, e]; written in place."""
        if self.length >= self.k.size(3):
            raise ValueError(f"there is room for {self.k.size(3)} tokens of a beam, and no more")
        self.k[:, :, :, self.length] = k
        self.v[:, :, :, self.length] = v
        return replace(self, length=self.length + 1)

    def reordered(self, parents: Tensor) -> BeamKeys:
        """Beam w goes on from beam parents[b, w] of its row, int64 [B, any number of beams]."""
        rows = torch.arange(parents.size(0), device=parents.device)[:, None]
        return replace(self, k=self.k[rows, parents], v=self.v[rows, parents])


def softmax_attention_step(
    q: Tensor,
    *,
    scale: float,
    shared: SharedKeys | None = None,
    own: BeamKeys | None = None,
    position_bias: Tensor | None = None,
) -> Tensor:
    """q [B, W, H, d], a new token of each beam -> [B, W, H, e] in its dtype, softmax in float32.

    The new token stands last: at place M_b + length - 1 of its row and beam, with M_b shared keys
    and its own key appended to `own`. position_bias [1 or H, 2P - 1] as in `softmax_attention`;
    without `own` (cross-attention) there are no places, and it takes none. A row that has no keys
    at all gives zeros.
    """
    if shared is None and own is None:
        raise ValueError("a step attends to shared keys, own keys, or both; got neither")
    if own is not None and own.length == 0:
        raise ValueError("a token sees itself: append its key and value to `own` before the step")
    if own is None and position_bias is not None:
        raise ValueError("cross-attention has no places: give the token's own keys, or no bias")
    parts, values = [], []
    dtype = torch.promote_types(q.dtype, torch.float32)
    if shared is not None:
        scores = torch.einsum("bwhd,bhmd->bwhm", q, shared.k).to(dtype) * scale
        places = torch.arange(shared.k.size(2), device=q.device)
        lengths = shared.lengths[:, None]
        if own is not None and position_bias is not None:
            distance = places - (lengths + own.length - 1)
            scores = scores + _bias(position_bias, distance).to(dtype)[:, None]
        absent = (places >= lengths)[:, None, None]
        parts.append(scores.masked_fill(absent, float("-inf")))
        values.append(shared.v)
    if own is not None:
        k, v = own.k[:, :, :, : own.length], own.v[:, :, :, : own.length]
        scores = torch.einsum("bwhd,bwhsd->bwhs", q, k).to(dtype) * scale
        if position_bias is not None:
            distance = torch.arange(own.length, device=q.device)[None] - (own.length - 1)
            scores = scores + _bias(position_bias, distance).to(dtype)[:, None]
        parts.append(scores)
        values.append(v)
    weights = torch.softmax(torch.cat(parts, -1), -1)
    if own is None and shared is not None:
        weights = torch.where(shared.lengths[:, None, None, None] > 0, weights, 0.0)
    weights = weights.to(q.dtype)
    out = q.new_zeros(())
    if shared is not None:
        at_shared = weights[..., : shared.k.size(2)]
        out = out + torch.einsum("bwhm,bhme->bwhe", at_shared, shared.v)
    if own is not None:
        out = out + torch.einsum("bwhs,bwhse->bwhe", weights[..., -own.length :], values[-1])
    return out


def _bias(table: Tensor, distance: Tensor) -> Tensor:
    """[1 or H, 2P - 1] at distances int64 [B or 1, keys] -> [B or 1, 1 or H, keys]."""
    reach = (table.size(1) - 1) // 2
    return table[:, distance.clamp(-reach, reach) + reach].transpose(0, 1)
