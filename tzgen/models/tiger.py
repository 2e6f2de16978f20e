# SPDX-License-Identifier: Apache-2.0
"""TIGER: an encoder reads the codes of the history, a decoder writes the codes of the next item.

    encoder    [start (+ user) | codes of item 1 | ... | codes of item n]     ragged, bidirectional
    decoder    [begin | code 0 | ... | code S - 2]  ->  codes 0 ... S - 1

Codes of all levels are one embedding table, each level from its offset on; each level has a head.
The start token is always there, so that an empty history is a row like any other. A row teaches one
item: every prefix of a sequence becomes a row by data_config.sliding_window.

Source: Rajput et al. 2023, section 3.2; layers in modules/transformer.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from google.protobuf.message import Message
from torch import Tensor, nn

from tzgen.config.options import options
from tzgen.config.tasks import TaskSpec
from tzgen.decoding import BeamState
from tzgen.decoding.options import Step
from tzgen.errors import Problem
from tzgen.models.base import MODELS
from tzgen.models.catalogue import Sequences
from tzgen.models.generator_base import Generator, transformer_problems
from tzgen.modules.transformer import (
    Decoder,
    RaggedTransformer,
    TransformerOptions,
    ragged_tokens,
    reordered,
)
from tzgen.ops.softmax_attention import BeamKeys


@MODELS.register("tiger")
class Tiger(Generator):
    """The encoder-decoder of the module docstring."""

    def __init__(
        self,
        config: Message,
        *,
        widths: Mapping[str, tuple[int, ...]],
        tasks: Sequence[TaskSpec],
        kernel: str,
    ) -> None:
        super().__init__(config, widths=widths, tasks=tasks, kernel=kernel)
        layers = options(TransformerOptions, self.config.transformer)
        self.add_vocabulary(layers.d_model, std=1.0)
        self.begin = nn.Parameter(torch.randn(layers.d_model))
        self.encoder = RaggedTransformer(layers, causal=False, kernel=kernel)
        self.decoder = Decoder(layers, kernel=kernel)

    def encode(self, batch: Sequences) -> tuple[Tensor, Tensor, int]:
        """States [B + E * S, D], offsets int64 [B + 1], the longest row."""
        levels = len(self.sizes)
        tokens = self.codes(self.catalogue.tokens(batch.rows).flatten())
        x, offsets, longest = ragged_tokens(
            self.starts(batch),
            tokens,
            batch.lengths * levels,
            max_tokens=batch.max_items * levels,
        )
        return self.encoder(x, offsets, max_len=longest), offsets, longest

    def teach(self, batch: Sequences, *, whole: bool) -> tuple[Tensor, Tensor]:
        encoded, offsets, longest = self.encode(batch)
        before = self.catalogue.tokens(batch.target.clamp(min=0))[:, :-1]
        begin = self.begin.expand(batch.num_rows, 1, -1)
        x = torch.cat([begin, self.codes(before)], 1)
        return self.decoder(x, encoded, offsets, max_len=longest), batch.target

    def search_from(self, batch: Sequences) -> Step:
        encoded, offsets, longest = self.encode(batch)
        shared = self.decoder.prefill(encoded, offsets, max_len=longest)
        own: list[BeamKeys] | None = None

        def step(level: int, state: BeamState) -> Tensor:
            nonlocal own
            if level == 0:
                own, x = None, self.begin.expand(batch.num_rows, 1, -1)
            else:
                assert own is not None and state.rows is not None, "level 0 comes first"
                own = reordered(own, state.rows, state.num_beams)
                tokens = state.codes[:, :, -1] + self.catalogue.offsets[level - 1]
                x = self.codes(tokens)
            states, own = self.decoder.step(x, shared, own, room=len(self.sizes))
            logits: Tensor = self.heads[level](states.flatten(0, 1))
            return logits

        return step

    @classmethod
    def check(
        cls, model_config: Any, widths: Mapping[str, tuple[int, ...]] | None = None
    ) -> list[Problem]:
        path = "model_config.tiger.transformer"
        return [
            *super().check(model_config, widths),
            *transformer_problems(model_config.tiger.transformer, path),
        ]
