# SPDX-License-Identifier: Apache-2.0
"""HSTU end to end: events -> tokens -> positions -> STU layers -> states of the candidates."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from tzgen.modules.positions import GRPositionalEncoderOptions, HSTUPositionalEncoder
from tzgen.modules.postprocessors import GROutputPostprocessorOptions, create_output_postprocessor
from tzgen.modules.preprocessors import (
    GRInputPreprocessorOptions,
    InputShape,
    create_input_preprocessor,
)
from tzgen.modules.sequence import Events, TokenSequence
from tzgen.modules.stu import MTGROptions, STUOptions, STUStack, Truncation


@dataclass(frozen=True)
class HSTUOptions:
    """The proto HSTU."""

    stu: STUOptions
    input_dropout_ratio: float
    attn_num_layers: int
    positional_encoder: GRPositionalEncoderOptions | None
    input_preprocessor: GRInputPreprocessorOptions
    output_postprocessor: GROutputPostprocessorOptions
    attn_truncation_split_layer: int | None
    attn_truncation_tail_len: int | None
    name: str
    mtgr: MTGROptions | None

    @property
    def truncation(self) -> Truncation | None:
        """Where the history is cut; None unless both fields are set."""
        split, tail = self.attn_truncation_split_layer, self.attn_truncation_tail_len
        return Truncation(split, tail) if split and tail else None


class HSTUTransducer(nn.Module):
    """The transducer of one channel. `max_seq_len` is the attention's divisor by default."""

    def __init__(
        self,
        options: HSTUOptions,
        *,
        uih_dim: int,
        candidate_dim: int,
        contextual_dim: int,
        contextual_len: int,
        max_seq_len: int,
        kernel: str,
    ) -> None:
        super().__init__()
        self.input_dropout_ratio = options.input_dropout_ratio
        shape = InputShape(
            uih_dim=uih_dim,
            candidate_dim=candidate_dim,
            contextual_dim=contextual_dim,
            contextual_len=contextual_len,
            embedding_dim=options.stu.embedding_dim,
        )
        self.preprocessor = create_input_preprocessor(options.input_preprocessor, shape)
        self.positions: HSTUPositionalEncoder | None = None
        if options.positional_encoder is not None:
            self.positions = HSTUPositionalEncoder(
                options.positional_encoder, embedding_dim=options.stu.embedding_dim
            )
        self.stack = STUStack(
            options.stu,
            num_layers=options.attn_num_layers,
            max_seq_len=max_seq_len,
            contextual_len=contextual_len,
            mtgr=options.mtgr,
            truncation=options.truncation,
            kernel=kernel,
        )
        self.postprocessor = create_output_postprocessor(
            options.output_postprocessor, options.stu.embedding_dim
        )

    def encode(self, events: Events) -> TokenSequence:
        """The tokens that reach the last layer, with its states, before the postprocessor."""
        tokens = self.preprocessor(events)
        if self.positions is not None:
            tokens = tokens.with_x(self.positions(tokens))
        x = F.dropout(tokens.x, self.input_dropout_ratio, training=self.training)
        encoded: TokenSequence = self.stack(tokens.with_x(x))
        return encoded

    def forward(self, events: Events) -> Tensor:
        """States of the candidates, [T, embedding_dim], in the order of `events.candidates`."""
        encoded = self.encode(events)
        states = encoded.x.index_select(0, encoded.targets)
        out: Tensor = self.postprocessor(states, events.candidate_timestamps)
        return out
