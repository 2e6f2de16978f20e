# SPDX-License-Identifier: Apache-2.0
"""From events to the token sequence that STU layers read: `[contextual | history | candidates]`.

    contextual             one token an event: content_mlp(content) + action_mlp(action);
                           candidates get content_mlp(content) + action_mlp(dummy action)
    contextual interleave  two tokens an event, content then action; candidates are content only.
                           TorchEasyRec adds an action token to each candidate in training: nobody
                           sees it and nobody reads it, so that leaving it out is the same function
    uih                    history only (retrieval): projection of the content + action_mlp(action)

Each contextual feature becomes one token by its own Linear. B rows, C contextual tokens of width
Dx, D model width. Source: generative-recommenders and TorchEasyRec, preprocessors.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from tzgen.modules.action_encoder import (
    GRActionEncoderOptions,
    SimpleActionEncoder,
    create_action_encoder,
)
from tzgen.modules.content_encoder import GRContentEncoderOptions, create_content_encoder
from tzgen.modules.contextual_mlp import (
    ContextualizedMLP,
    GRContextualizedMLPOptions,
    create_contextualized_mlp,
)
from tzgen.modules.mlp import xavier_init
from tzgen.modules.sequence import Events, TokenSequence, assemble
from tzgen.ops import jagged


@dataclass(frozen=True)
class GRContextualPreprocessorOptions:
    """The proto GRContextualPreprocessor."""

    action_encoder: GRActionEncoderOptions | None
    action_mlp: GRContextualizedMLPOptions | None
    content_encoder: GRContentEncoderOptions
    content_mlp: GRContextualizedMLPOptions


@dataclass(frozen=True)
class GRContextualInterleavePreprocessorOptions:
    """The proto GRContextualInterleavePreprocessor."""

    action_encoder: GRActionEncoderOptions | None
    enable_interleaving: bool
    action_mlp: GRContextualizedMLPOptions | None
    content_encoder: GRContentEncoderOptions
    content_mlp: GRContextualizedMLPOptions


@dataclass(frozen=True)
class GRUIHPreprocessorOptions:
    """The proto GRUIHPreprocessor."""

    action_encoder: GRActionEncoderOptions | None
    action_mlp: GRContextualizedMLPOptions | None


@dataclass(frozen=True)
class GRInputPreprocessorOptions:
    """The proto GRInputPreprocessor."""

    input_preprocessor: (
        tuple[
            str,
            GRContextualPreprocessorOptions
            | GRContextualInterleavePreprocessorOptions
            | GRUIHPreprocessorOptions,
        ]
        | None
    )

    @property
    def chosen(
        self,
    ) -> (
        GRContextualPreprocessorOptions
        | GRContextualInterleavePreprocessorOptions
        | GRUIHPreprocessorOptions
    ):
        if self.input_preprocessor is None:
            raise ValueError("input_preprocessor chooses nothing; write one of its preprocessors")
        return self.input_preprocessor[1]


@dataclass(frozen=True)
class InputShape:
    """Widths of history, candidates and contextual tokens, the number of these; model width."""

    uih_dim: int
    candidate_dim: int
    contextual_dim: int
    contextual_len: int
    embedding_dim: int

    @property
    def contextual_features(self) -> int:
        return self.contextual_dim * self.contextual_len


class InputPreprocessor(nn.Module):
    """Base: owns the contextual tokens and the action branch."""

    def __init__(
        self,
        shape: InputShape,
        action_encoder: GRActionEncoderOptions | None,
        action_mlp: GRContextualizedMLPOptions | None,
        *,
        candidate_actions: bool,
    ) -> None:
        super().__init__()
        self.shape, self.contextual_len = shape, shape.contextual_len
        if shape.contextual_len > 0:
            std = sqrt(2.0 / (shape.contextual_dim + shape.embedding_dim))
            size = (shape.contextual_len, shape.contextual_dim, shape.embedding_dim)
            self.contextual_weight = nn.Parameter(torch.empty(size).normal_(0.0, std))
            self.contextual_bias = nn.Parameter(torch.zeros(size[0], 1, size[2]))
        self.action_encoder: SimpleActionEncoder | None = None
        self.action_mlp: ContextualizedMLP | None = None
        if action_encoder is not None:
            if action_mlp is None:
                raise ValueError("action_encoder needs action_mlp")
            encoder = create_action_encoder(action_encoder, for_candidates=candidate_actions)
            self.action_encoder = encoder
            self.action_mlp = self._project(action_mlp, encoder.output_dim)

    def _project(self, options: GRContextualizedMLPOptions, in_features: int) -> ContextualizedMLP:
        return create_contextualized_mlp(
            options,
            in_features=in_features,
            out_features=self.shape.embedding_dim,
            contextual_features=self.shape.contextual_features,
        )

    @property
    def reads_actions(self) -> bool:
        return self.action_encoder is not None

    @property
    def reads_watchtime(self) -> bool:
        return self.action_encoder is not None and self.action_encoder.reads_watchtime

    @property
    def tokens_per_event(self) -> int:
        return 1

    def forward(self, events: Events) -> TokenSequence:
        raise NotImplementedError

    def _contextual_tokens(self, events: Events) -> tuple[Tensor | None, Tensor | None]:
        """Tokens [B, C, D] and the flat contextual features [B, C * Dx]; None without any."""
        if self.contextual_len == 0:
            return None, None
        if events.contextual is None:
            raise ValueError("the preprocessor was made with contextual tokens; none were given")
        raw = events.contextual
        dtype = raw.dtype
        bias, weight = self.contextual_bias.to(dtype), self.contextual_weight.to(dtype)
        tokens = torch.baddbmm(bias, raw.transpose(0, 1), weight)
        return tokens.transpose(0, 1), raw.flatten(1)

    def _actions(
        self, events: Events, contextual: Tensor | None, *, candidates: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Projected actions of the events [E, D] and, if asked, of the candidates [T, D]."""
        if self.action_encoder is None or self.action_mlp is None:
            return None, None
        if events.actions is None:
            raise ValueError("action_encoder is set: group uih_action is needed")
        encoded = self.action_encoder(events.actions, events.watchtimes)
        parts = [(encoded.to(events.uih.dtype), jagged.offsets_of(events.uih_lengths))]
        batch = events.uih_lengths.size(0)
        if candidates:  # one dummy a row, projected with the row's weights
            dummy = self.action_encoder.candidate(batch).to(events.uih.dtype)
            parts.append((dummy, torch.arange(batch + 1, device=dummy.device)))
        projected = self.action_mlp(parts, contextual)
        if not candidates:
            return projected[0], None
        rows = jagged.row_index(events.num_candidates, events.candidate_timestamps.size(0))
        return projected[0], projected[1].index_select(0, rows)


class ContextualPreprocessor(InputPreprocessor):
    """Content and action of an event share a token, or follow each other if `interleave`."""

    def __init__(
        self,
        options: GRContextualPreprocessorOptions | GRContextualInterleavePreprocessorOptions,
        shape: InputShape,
        *,
        interleave: bool,
    ) -> None:
        super().__init__(
            shape, options.action_encoder, options.action_mlp, candidate_actions=not interleave
        )
        if interleave and options.action_encoder is None:
            raise ValueError("interleaving puts actions between the items: set action_encoder")
        self.interleave = interleave
        self.content_encoder = create_content_encoder(
            options.content_encoder, uih_dim=shape.uih_dim, candidate_dim=shape.candidate_dim
        )
        self.content_mlp = self._project(options.content_mlp, self.content_encoder.output_dim)

    @property
    def tokens_per_event(self) -> int:
        return 2 if self.interleave else 1

    def forward(self, events: Events) -> TokenSequence:
        if events.candidates is None:
            raise ValueError("contextual preprocessors need group candidate")
        tokens, contextual = self._contextual_tokens(events)
        uih, candidates = self.content_encoder(events.uih, events.candidates)
        offsets = [jagged.offsets_of(n) for n in (events.uih_lengths, events.num_candidates)]
        history, targets = self.content_mlp(
            [(uih, offsets[0]), (candidates, offsets[1])], contextual
        )
        actions, dummy = self._actions(events, contextual, candidates=not self.interleave)
        if actions is not None and self.interleave:
            history = torch.stack([history, actions], dim=1).flatten(0, 1)
        elif actions is not None and dummy is not None:
            history, targets = history + actions, targets + dummy
        return assemble(
            contextual=tokens,
            history=history,
            tokens_per_event=self.tokens_per_event,
            targets=targets,
            events=events,
        )


class UIHPreprocessor(InputPreprocessor):
    """History only; items of another width than the model's pass one Linear."""

    def __init__(self, options: GRUIHPreprocessorOptions, shape: InputShape) -> None:
        super().__init__(shape, options.action_encoder, options.action_mlp, candidate_actions=False)
        same = shape.uih_dim == shape.embedding_dim
        self.content = nn.Identity() if same else nn.Linear(shape.uih_dim, shape.embedding_dim)
        self.content.apply(xavier_init)

    def forward(self, events: Events) -> TokenSequence:
        if events.candidates is not None:
            raise ValueError("uih_preprocessor takes no candidates")
        tokens, contextual = self._contextual_tokens(events)
        history: Tensor = self.content(events.uih)
        actions, _ = self._actions(events, contextual, candidates=False)
        return assemble(
            contextual=tokens,
            history=history if actions is None else history + actions,
            tokens_per_event=1,
            targets=history[:0],
            events=events,
        )


def create_input_preprocessor(
    options: GRInputPreprocessorOptions, shape: InputShape
) -> InputPreprocessor:
    chosen = options.chosen
    if isinstance(chosen, GRUIHPreprocessorOptions):
        return UIHPreprocessor(chosen, shape)
    interleave = (
        isinstance(chosen, GRContextualInterleavePreprocessorOptions) and chosen.enable_interleaving
    )
    return ContextualPreprocessor(chosen, shape, interleave=interleave)
