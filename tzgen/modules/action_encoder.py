# SPDX-License-Identifier: Apache-2.0
"""Action bitmasks as vectors: every action bit times its own embedding, concatenated.

A actions (configured weights, then those derived from watch times), d width of each, E events.
Candidates have no action: all get one learned vector, so that labels cannot leak.
Source: generative-recommenders and TorchEasyRec, ActionEncoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class GRSimpleActionEncoderOptions:
    """The proto GRSimpleActionEncoder."""

    action_embedding_dim: int
    action_weights: tuple[int, ...]
    watchtime_to_action_thresholds: tuple[int, ...]
    watchtime_to_action_weights: tuple[int, ...]
    embedding_init_std: float


@dataclass(frozen=True)
class GRActionEncoderOptions:
    """The proto GRActionEncoder."""

    action_encoder: tuple[str, GRSimpleActionEncoderOptions] | None


class SimpleActionEncoder(nn.Module):
    """[E] bitmasks -> [E, A * d]. `for_candidates`: whether candidates carry a (dummy) action."""

    def __init__(self, options: GRSimpleActionEncoderOptions, *, for_candidates: bool) -> None:
        super().__init__()
        thresholds = options.watchtime_to_action_thresholds
        derived = options.watchtime_to_action_weights
        if len(thresholds) != len(derived):
            raise ValueError(f"{len(thresholds)} watch-time thresholds for {len(derived)} weights")
        weights = (*options.action_weights, *derived)
        if not weights:
            raise ValueError("action_weights is empty: there is no action to encode")
        self.derived = tuple(zip(thresholds, derived, strict=True))
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.int64), persistent=False)
        shape = (len(weights), options.action_embedding_dim)
        std = options.embedding_init_std
        self.embeddings = nn.Parameter(torch.empty(shape).normal_(0.0, std))
        self.dummy = nn.Parameter(torch.empty(shape).normal_(0.0, std)) if for_candidates else None
        self.output_dim = shape[0] * shape[1]

    @property
    def reads_watchtime(self) -> bool:
        return bool(self.derived)

    def forward(self, actions: Tensor, watchtimes: Tensor | None = None) -> Tensor:
        """actions int64 [E], watchtimes [E] of any number type -> [E, A * d]."""
        for threshold, weight in self.derived:
            if watchtimes is None:
                raise ValueError("watchtime_to_action_thresholds need group uih_watchtime")
            actions = actions | (watchtimes >= threshold).to(torch.int64) * weight
        weights: Tensor = self.get_buffer("weights")
        present = (actions.unsqueeze(1) & weights) != 0
        return (present.unsqueeze(2).to(self.embeddings.dtype) * self.embeddings).flatten(1)

    def candidate(self, count: int) -> Tensor:
        """The candidates' vector, [count, A * d]."""
        if self.dummy is None:
            raise ValueError("this encoder was made without candidates")
        return self.dummy.flatten().expand(count, -1)


def create_action_encoder(
    options: GRActionEncoderOptions, *, for_candidates: bool
) -> SimpleActionEncoder:
    if options.action_encoder is None:
        raise ValueError("action_encoder chooses no encoder; write simple_action_encoder { ... }")
    return SimpleActionEncoder(options.action_encoder[1], for_candidates=for_candidates)
