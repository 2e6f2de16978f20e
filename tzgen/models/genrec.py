# SPDX-License-Identifier: Apache-2.0
"""A decoder over semantic IDs: history and next item are one row of codes, all of them learnt.

    input     start (+ user)   item 1: code 0 ... code S - 1   item 2 ...        target: ... S - 2
    output    item 1: code 0 ... code S - 1                    item 2 ...        target: ... S - 1

so that every item of a row is taught from what stands before it, in one causal pass: no sliding
window. Layers are T5's, causal (`transformer`), or STU's (`hstu`). In a search the history is
encoded once; the beams of a row share its keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from google.protobuf.message import Message
from torch import Tensor

from tzgen.config.options import options
from tzgen.config.tasks import TaskSpec
from tzgen.decoding import BeamState
from tzgen.decoding.options import Step
from tzgen.errors import Problem
from tzgen.models.base import MODELS
from tzgen.models.catalogue import Sequences
from tzgen.models.generator_base import Generator, dropout_problems, transformer_problems
from tzgen.modules.stu_beams import STUDecoder
from tzgen.modules.stu_options import STUOptions
from tzgen.modules.transformer import RaggedTransformer, TransformerOptions, ragged_tokens
from tzgen.ops import jagged


@MODELS.register("genrec")
class GenRec(Generator):
    """The decoder of the module docstring."""

    def __init__(
        self,
        config: Message,
        *,
        widths: Mapping[str, tuple[int, ...]],
        tasks: Sequence[TaskSpec],
        kernel: str,
    ) -> None:
        super().__init__(config, widths=widths, tasks=tasks, kernel=kernel)
        self.backbone: Any
        if self.config.WhichOneof("backbone") == "hstu":
            stu = stu_options(self.config.hstu)
            self.add_vocabulary(stu.embedding_dim, std=0.02)
            self.backbone = STUDecoder(
                stu,
                num_layers=self.config.hstu_layers,
                max_seq_len=(self.config.max_items + 1) * len(self.sizes),
                input_dropout_ratio=self.config.input_dropout_ratio,
                kernel=kernel,
            )
        else:
            layers = options(TransformerOptions, self.config.transformer)
            self.add_vocabulary(layers.d_model, std=1.0)
            self.backbone = RaggedTransformer(layers, causal=True, kernel=kernel)

    def teach(self, batch: Sequences, *, whole: bool) -> tuple[Tensor, Tensor]:
        """Rows without a known target end in item 0: nothing sees it, and it has no loss."""
        levels, ones = len(self.sizes), torch.ones_like(batch.lengths)
        places = jagged.concat_places(
            [batch.lengths, ones], [batch.rows.size(0), batch.target.size(0)]
        )
        items = jagged.concat([batch.rows, batch.target], places)
        tokens = self.codes(self.catalogue.tokens(items.clamp(min=0)).flatten())
        offsets = jagged.offsets_of((batch.lengths + 1) * levels)
        moved = torch.cat([tokens.new_zeros(1, tokens.size(1)), tokens[:-1]])
        x = moved[: tokens.size(0)].index_copy(0, offsets[:-1], self.starts(batch))
        longest = (batch.max_items + 1) * levels
        states = self.backbone(x, offsets, max_len=longest).unflatten(0, (-1, levels))
        if whole:
            return states, items
        return states.index_select(0, places[1]), batch.target

    def search_from(self, batch: Sequences) -> Step:
        levels = len(self.sizes)
        tokens = self.codes(self.catalogue.tokens(batch.rows).flatten())
        x, offsets, longest = ragged_tokens(
            self.starts(batch),
            tokens,
            batch.lengths * levels,
            max_tokens=batch.max_items * levels,
        )
        encoded, shared = self.backbone.prefill(x, offsets, max_len=longest)
        last = encoded.index_select(0, offsets[1:] - 1)
        own: Any = None

        def step(level: int, state: BeamState) -> Tensor:
            nonlocal own
            if level == 0:
                own = None
                first: Tensor = self.heads[0](last)
                return first
            if own is not None:
                own = self.backbone.reorder(own, state.rows, state.num_beams)
            x = self.codes(state.codes[:, :, -1] + self.catalogue.offsets[level - 1])
            states, own = self.backbone.step(x, shared, own, room=levels - 1)
            logits: Tensor = self.heads[level](states.flatten(0, 1))
            return logits

        return step

    @classmethod
    def check(
        cls, model_config: Any, widths: Mapping[str, tuple[int, ...]] | None = None
    ) -> list[Problem]:
        config, path = model_config.genrec, "model_config.genrec"
        problems = super().check(model_config, widths)
        chosen = config.WhichOneof("backbone")
        if chosen is None:
            expected, remedy = "transformer or hstu", "Write transformer {} for the defaults."
            problems.append(Problem(path, "no backbone", expected, remedy))
        elif chosen == "transformer":
            problems += transformer_problems(config.transformer, f"{path}.transformer")
        else:
            problems += _hstu_problems(config, path)
        return problems


def stu_options(message: Any) -> STUOptions:
    """An STU message as options; preset PAPER turns the relative bias on, by place alone."""
    resolved = type(message)()
    resolved.CopyFrom(message)
    if resolved.preset == resolved.PAPER and not resolved.HasField("relative_bias"):
        resolved.relative_bias.SetInParent()
    if resolved.HasField("relative_bias"):
        resolved.relative_bias.use_time = False
    return options(STUOptions, resolved)


def _hstu_problems(config: Any, path: str) -> list[Problem]:
    """STU options that a causal decoder without times cannot have."""
    stu, found = config.hstu, dropout_problems(config, path, "input_dropout_ratio")
    if config.hstu_layers < 1:
        found.append(Problem(f"{path}.hstu_layers", "0", "at least 1", "Raise it."))
    bias = stu.relative_bias
    if stu.HasField("relative_bias") and bias.HasField("use_time") and bias.use_time:
        expected = "a bias by place: codes of an item have no times"
        where = f"{path}.hstu.relative_bias.use_time"
        found.append(Problem(where, "true", expected, "Remove it, or set it to false."))
    if stu.contextual_seq_len > 0:
        where, shown = f"{path}.hstu.contextual_seq_len", str(stu.contextual_seq_len)
        expected = "none: every code is learnt from those before it"
        found.append(Problem(where, shown, expected, "Remove it."))
    if stu.full_attn_tail:
        where, shown = f"{path}.hstu.full_attn_tail", str(stu.full_attn_tail)
        expected = "0: what a beam appends must not move what was encoded"
        found.append(Problem(where, shown, expected, "Remove it."))
    return found
