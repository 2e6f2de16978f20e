# SPDX-License-Identifier: Apache-2.0
"""HSTU end to end: events -> tokens -> positions -> STU layers -> states of the candidates."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tzgen.modules.positions import GRPositionalEncoderOptions, HSTUPositionalEncoder
from tzgen.modules.postprocessors import GROutputPostprocessorOptions, create_output_postprocessor
from tzgen.modules.preprocessors import (
    GRInputPreprocessorOptions,
    InputShape,
    create_input_preprocessor,
)
from tzgen.modules.sequence import Events, TokenSequence
from tzgen.modules.stu import STUStack
from tzgen.modules.stu_cache import (
    EncodedHistory,
    candidates_of,
    continued,
    history_of,
    newest_time,
)
from tzgen.modules.stu_options import MTGROptions, STUOptions, Truncation
from tzgen.ops.dropout import dropout


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
        self.channel = options.name
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
        encoded: TokenSequence = self.stack(self._placed(self.preprocessor(events)))
        return encoded

    def _placed(self, tokens: TokenSequence) -> TokenSequence:
        """Tokens with positions and ages, as the first layer reads them."""
        if self.positions is not None:
            tokens = tokens.with_x(self.positions(tokens))
        return tokens.with_x(dropout(tokens.x, self.input_dropout_ratio, training=self.training))

    def forward(self, events: Events) -> Tensor:
        """States of the candidates, [T, embedding_dim], in the order of `events.candidates`."""
        encoded = self.encode(events)
        states = encoded.x.index_select(0, encoded.targets)
        out: Tensor = self.postprocessor(states, events.candidate_timestamps)
        return out

    def encode_user(self, events: Events) -> EncodedHistory:
        """Contextual tokens and history, without the candidates of `events`, as a cache.

        `events.query_time` is the request's: ages are measured from it. Call eval() before.
        """
        self._refuse_training()
        history = history_of(events)
        tokens = self._placed(self.preprocessor(history))
        _, layers = self.stack.prefill(tokens, states=False)
        return EncodedHistory(
            layers,
            lengths=tokens.lengths,
            query_time=events.query_time,
            newest=newest_time(history, torch.zeros_like(tokens.lengths)),
            contextual=events.contextual if self.preprocessor.contextual_len else None,
            max_len=tokens.max_len,
        )

    def score(self, events: Events, cache: EncodedHistory) -> Tensor:
        """States of the candidates, [T, embedding_dim]: `forward` without the history.

        Of `events`, candidates, their numbers and times are read; rows are those of the cache.
        """
        self._refuse_training()
        alone = self.preprocessor(candidates_of(events, cache))
        tokens = continued(
            alone.x.index_select(0, alone.targets),
            events.num_candidates,
            cached=cache.lengths,
            targets=True,
            timestamps=events.candidate_timestamps,
            query_time=cache.query_time,
            max_new=events.max_candidates,
            contextual_len=alone.contextual_len,
        )
        states = self.stack.score(self._placed(tokens), cache.layers).x
        out: Tensor = self.postprocessor(states, events.candidate_timestamps)
        return out

    def append(self, events: Events, cache: EncodedHistory) -> EncodedHistory:
        """The new events of `events` behind the cached rows: a cache of these tokens alone.

        `cache.extended` joins both; a paged cache takes the new tokens into its pages. Valid where
        nothing that follows a token reaches it: config/stability.py says when, the model refuses.
        """
        self._refuse_training()
        fresh = history_of(replace(events, contextual=cache.contextual))
        alone, per_event = self.preprocessor(fresh), self.preprocessor.tokens_per_event
        steps = torch.arange(per_event, device=alone.x.device)
        tokens = continued(
            alone.x.index_select(0, (alone.history.unsqueeze(1) + steps).flatten()),
            fresh.uih_lengths * per_event,
            cached=cache.lengths,
            targets=False,
            timestamps=fresh.uih_timestamps.repeat_interleave(per_event),
            query_time=events.query_time,
            max_new=fresh.max_uih_len * per_event,
            contextual_len=alone.contextual_len,
        )
        _, layers = self.stack.append(self._placed(tokens), cache.layers, states=False)
        return EncodedHistory(
            layers,
            lengths=fresh.uih_lengths * per_event,
            query_time=events.query_time,
            newest=newest_time(fresh, cache.newest),
            contextual=cache.contextual,
            max_len=tokens.max_len,
        )

    def _refuse_training(self) -> None:
        if self.training:
            raise ValueError("caches are for inference, without dropout: call eval() first")
