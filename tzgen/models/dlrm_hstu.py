# SPDX-License-Identifier: Apache-2.0
"""DlrmHSTU: every candidate of a row is scored after one pass over the user's history.

    user = HSTUTransducer(contextual, history, candidates) at the candidates' places    [T, D]
    item = LN(Linear(SwishLN(Linear(candidate))))                                       [T, D]
    task logits = FusionMTLTower(user * item)

B rows, E history events, T candidates. Group names are fixed (`uih` may be another channel name):
contextual, uih, candidate, uih_action, uih_watchtime, uih_timestamp, candidate_timestamp.
Source: Zhai et al. 2024; TorchEasyRec's dlrm_hstu; with `hstu.mtgr`, Guo et al. 2025 (MTGR).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from google.protobuf.message import Message
from torch import Tensor

from tzgen.config.stability import append_refusals, stability_problems
from tzgen.config.tasks import TaskSpec
from tzgen.embeddings import Groups
from tzgen.errors import Problem, UserError
from tzgen.models.base import MODELS, GroupRule, Model, Outputs, real_numbers
from tzgen.models.hstu_channel import (
    contextual_problems,
    group_rules,
    make_channel,
    make_tower,
    make_transducer,
    structure_problems,
    width_problems,
)
from tzgen.models.hstu_options import contextual_tokens
from tzgen.models.multi_task import extraction_problems
from tzgen.modules.contextual_mlp import swish_mlp
from tzgen.modules.sequence import Events
from tzgen.modules.stu_cache import EncodedHistory, LayerCaches, candidate_chunks, oldest_time

# What `predict` does where score_micro_batch is not set (docs/kv_cache.md has the measurement).
CHUNK = 4096  # candidates at once
CACHE_FROM = 1024  # events of a batch from which encoding them apart pays


@MODELS.register("dlrm_hstu")
class DlrmHSTU(Model):
    """The multi-task ranker of the module docstring."""

    def __init__(
        self,
        config: Message,
        *,
        widths: Mapping[str, tuple[int, ...]],
        tasks: Sequence[TaskSpec],
        kernel: str,
    ) -> None:
        super().__init__(config, widths=widths, tasks=tasks, kernel=kernel)
        dim = config.hstu.stu.embedding_dim
        self.channel = make_channel(config, config.hstu, widths)
        self.transducer = make_transducer(config, config.hstu, widths, kernel=kernel)
        self.micro_batch = config.score_micro_batch
        self.append_refusals = append_refusals(config.hstu, self.channel.contextual[0])
        self.item_mlp = swish_mlp(sum(widths["candidate"]), config.item_embedding_hidden_dim, dim)
        self.tower = make_tower(config, dim, tasks)

    def forward(self, groups: Groups) -> Outputs:
        """Outputs with one logit (or num_class of them) a task and candidate."""
        events = self.events(groups)
        return self.outputs_of(events, self.transducer(events))

    def predict(self, groups: Groups) -> Outputs:
        """The same outputs, with histories encoded once and candidates scored chunk by chunk.

        The last layer then computes no states of history, and memory follows the chunk. Where a
        batch has next to no history, one plain forward is faster.
        """
        events = self.events(groups)
        size = self.micro_batch or CHUNK
        few = events.num_candidates.size(0) == 0 or events.candidate_timestamps.size(0) == 0
        plain = self.micro_batch == 0 and events.uih.size(0) < CACHE_FROM
        if few or (plain and events.candidate_timestamps.size(0) <= size):
            return self.outputs_of(events, self.transducer(events))
        cache = self.transducer.encode_user(events)
        parts = [
            self.outputs_of(chunk, self.transducer.score(chunk, cache))
            for chunk in candidate_chunks(events, size)
        ]
        return replace(Outputs.concatenate(parts), repeat=events.num_candidates)

    def encode(self, groups: Groups, request_time: Tensor | None = None) -> EncodedHistory:
        """Contextual features and histories as keys and values; candidates are not read.

        request_time int64 [B]: where ages are measured from. Without it, the newest of group
        candidate_timestamp; models without time encoding need neither.
        """
        return self.transducer.encode_user(self.channel.history(groups, request_time))

    def score(self, groups: Groups, cache: EncodedHistory) -> Outputs:
        """`forward` of the groups candidate and candidate_timestamp alone, rows as in `cache`."""
        events = self.scored_events(groups, cache)
        return self.outputs_of(events, self.transducer.score(events, cache))

    def scored_events(self, groups: Groups, cache: EncodedHistory) -> Events:
        """The candidates of `groups`; raises UserError where they do not belong to `cache`."""
        events = self.channel.candidates(groups)
        _require_rows(events.num_candidates, cache)
        if self.channel.needs_request_time:
            _refuse(
                events.query_time > cache.query_time,
                "candidates are newer than the request that the history was encoded for, and "
                "positional_encoder.use_time_encoding measures ages from it: encode again with the "
                "new request_time",
            )
        return events

    def append(self, groups: Groups, cache: EncodedHistory) -> EncodedHistory:
        """New events of the users of `cache`, as keys and values of these alone.

        `cache.extended` puts them behind the old ones. Groups hold nothing but the new events;
        group contextual may be left out, else it must be what the cache was made with. Raises
        UserError where the model is not append-stable, naming the fields.
        """
        return self.transducer.append(self.appended_events(groups, cache), cache)

    def appended_events(self, groups: Groups, cache: EncodedHistory) -> Events:
        """The new events of `groups`; raises UserError where they cannot be appended to `cache`."""
        self.require_append()
        given = dict(groups)
        if cache.contextual is not None:
            _refuse(
                self._contextual_changed(given, cache.contextual),
                "group contextual is not what the cached states were made with, and contextual "
                "tokens are part of every state: encode the whole history again",
            )
            given["contextual"] = cache.contextual.flatten(1)
        events = self.channel.history(given, cache.query_time)
        _require_rows(events.uih_lengths, cache)
        if self.transducer.stack.orders_by_time:
            _refuse(
                (events.uih_lengths > 0) & (oldest_time(events, cache.newest) < cache.newest),
                "new events are older than cached ones, which mtgr.timestamp_mask would show them "
                "to: encode the whole history again",
            )
        return events

    def resumed(
        self, groups: Groups, layers: LayerCaches, request_time: Tensor | None = None
    ) -> EncodedHistory:
        """Keys and values that were kept elsewhere, in pages say, as what `encode` returned.

        Of `groups`, contextual is read, and candidate_timestamp where ages need a request that
        `request_time` does not give. Whoever kept them knows that the history is the same.
        """
        lengths = layers[0].lengths
        if request_time is None:
            request_time = self.channel.request_time(groups, torch.zeros_like(lengths))
        return EncodedHistory(
            layers,
            lengths=lengths,
            query_time=request_time,
            newest=torch.zeros_like(lengths),
            contextual=self.channel.contextual_features(groups),
            max_len=layers[0].max_len,
        )

    def require_append(self) -> None:
        """Raise UserError naming every field that lets new events change earlier states."""
        if self.append_refusals:
            fields = "; ".join(str(choice) for choice in self.append_refusals)
            raise UserError(
                f"events cannot be appended to the caches of this model, because of {fields}. "
                "Encode the whole history again, or train with stu.append_stable: true."
            )

    def _contextual_changed(self, groups: Groups, cached: Tensor) -> Tensor:
        """Which rows' contextual features are not the cached ones [B, C, Dx]; bool [B]."""
        value = groups.get("contextual")
        if not isinstance(value, Tensor):
            return cached.new_zeros(cached.size(0), dtype=torch.bool)
        return (real_numbers(value) != cached.flatten(1)).any(1)

    def events(self, groups: Groups) -> Events:
        """The groups as the transducer reads them."""
        return self.channel.events(groups)

    def outputs_of(self, events: Events, user: Tensor) -> Outputs:
        """Outputs of candidates whose states are `user` [T, D]."""
        item = self.item_mlp(events.candidates)
        return Outputs(logits=self.tower(user, item), repeat=events.num_candidates)

    @classmethod
    def required_groups(cls, config: Message) -> tuple[GroupRule, ...]:
        return group_rules([config.hstu], "dlrm_hstu")

    @classmethod
    def check(
        cls, model_config: Message, widths: Mapping[str, tuple[int, ...]] | None = None
    ) -> list[Problem]:
        config, path = model_config.dlrm_hstu, "model_config.dlrm_hstu"
        problems = super().check(model_config, widths)
        problems += structure_problems(config.hstu, f"{path}.hstu")
        tokens = contextual_tokens(model_config, concat=config.concat_contextual_features)
        problems += stability_problems(config.hstu, f"{path}.hstu", tokens)
        tower = config.fusion_mtl_tower
        if tower.HasField("ple"):
            problems += extraction_problems(tower.ple, f"{path}.fusion_mtl_tower.ple")
        if widths is not None and not problems:
            problems += contextual_problems(config, widths, path)
            problems += width_problems(config.hstu, widths, f"{path}.hstu")
        return problems


def _require_rows(lengths: Tensor, cache: EncodedHistory) -> None:
    if lengths.size(0) != cache.lengths.size(0):
        raise UserError(
            f"the batch has {lengths.size(0)} rows and the cache {cache.lengths.size(0)}: row b of "
            "one belongs to row b of the other"
        )


def _refuse(rows: Tensor, why: str) -> None:
    """Raise UserError naming the rows of a bool [B]. Asks the device."""
    found = rows.nonzero().flatten().tolist()
    if found:
        shown = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
        raise UserError(f"row {shown}: {why}")
