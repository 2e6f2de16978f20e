# SPDX-License-Identifier: Apache-2.0
"""Projections of tokens to the model width, with the same weights for all or weights per user.

    simple          Linear(K, hidden) -> SwishLN -> Linear(hidden, M) -> LN
    parameterized   c = Linear(Dropout(contextual), hidden);  W = LN(Linear(c, K * M));
                    b = Linear(SwishLN(Linear(c, hidden)), M);   y_l = x_l @ W[row(l)] + b[row(l)]

Several ragged tensors of the same rows go through together, so that a user's weights (and the
dropout on the contextual vector) are made once. Source: generative-recommenders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from tzgen.modules.mlp import xavier_init
from tzgen.modules.norms import SwishLayerNorm
from tzgen.ops.jagged_dense_bmm import jagged_dense_bmm_broadcast_add


@dataclass(frozen=True)
class GRSimpleContextualizedMLPOptions:
    """The proto GRSimpleContextualizedMLP."""

    hidden_dim: int


@dataclass(frozen=True)
class GRParameterizedContextualizedMLPOptions:
    """The proto GRParameterizedContextualizedMLP."""

    hidden_dim: int
    contextual_dropout_ratio: float


@dataclass(frozen=True)
class GRContextualizedMLPOptions:
    """The proto GRContextualizedMLP."""

    contextualized_mlp: (
        tuple[str, GRSimpleContextualizedMLPOptions | GRParameterizedContextualizedMLPOptions]
        | None
    )


class ContextualizedMLP(nn.Module):
    """Base. parts: ([L_p, K], offsets int64 [B + 1]); contextual [B, F] or None -> [L_p, M]."""

    def forward(
        self, parts: Sequence[tuple[Tensor, Tensor]], contextual: Tensor | None
    ) -> list[Tensor]:
        raise NotImplementedError


class SimpleContextualizedMLP(ContextualizedMLP):
    def __init__(
        self, options: GRSimpleContextualizedMLPOptions, *, in_features: int, out_features: int
    ) -> None:
        super().__init__()
        self.mlp = swish_mlp(in_features, options.hidden_dim, out_features)

    def forward(
        self, parts: Sequence[tuple[Tensor, Tensor]], contextual: Tensor | None
    ) -> list[Tensor]:
        return [self.mlp(x) for x, _ in parts]


class ParameterizedContextualizedMLP(ContextualizedMLP):
    def __init__(
        self,
        options: GRParameterizedContextualizedMLPOptions,
        *,
        in_features: int,
        out_features: int,
        contextual_features: int,
    ) -> None:
        super().__init__()
        if contextual_features == 0:
            raise ValueError("parameterized_mlp makes its weights from group contextual: add one")
        hidden = options.hidden_dim
        self.dropout, self.shape = options.contextual_dropout_ratio, (in_features, out_features)
        self.compress = nn.Linear(contextual_features, hidden)
        self.weights = nn.Linear(hidden, in_features * out_features)
        self.weights_norm = nn.LayerNorm([in_features, out_features])
        self.bias = nn.Sequential(
            nn.Linear(hidden, hidden), SwishLayerNorm(hidden), nn.Linear(hidden, out_features)
        )
        self.apply(xavier_init)

    def forward(
        self, parts: Sequence[tuple[Tensor, Tensor]], contextual: Tensor | None
    ) -> list[Tensor]:
        if contextual is None:
            raise ValueError("parameterized_mlp needs the contextual features")
        compressed = self.compress(F.dropout(contextual, self.dropout, training=self.training))
        weights = self.weights_norm(self.weights(compressed).unflatten(1, self.shape))
        bias = self.bias(compressed)
        return [
            jagged_dense_bmm_broadcast_add(x, offsets, weights.to(x.dtype), bias.to(x.dtype))
            for x, offsets in parts
        ]


def swish_mlp(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    """Linear, SwishLN, Linear, LN with Xavier weights."""
    return nn.Sequential(
        nn.Linear(in_features, hidden),
        SwishLayerNorm(hidden),
        nn.Linear(hidden, out_features),
        nn.LayerNorm(out_features),
    ).apply(xavier_init)


def create_contextualized_mlp(
    options: GRContextualizedMLPOptions,
    *,
    in_features: int,
    out_features: int,
    contextual_features: int,
) -> ContextualizedMLP:
    chosen = None if options.contextualized_mlp is None else options.contextualized_mlp[1]
    if isinstance(chosen, GRSimpleContextualizedMLPOptions):
        return SimpleContextualizedMLP(chosen, in_features=in_features, out_features=out_features)
    if isinstance(chosen, GRParameterizedContextualizedMLPOptions):
        return ParameterizedContextualizedMLP(
            chosen,
            in_features=in_features,
            out_features=out_features,
            contextual_features=contextual_features,
        )
    raise ValueError("contextualized_mlp chooses nothing; write simple_mlp or parameterized_mlp")
