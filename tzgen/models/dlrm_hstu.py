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

from collections.abc import Iterator, Mapping, Sequence

import torch
from google.protobuf.message import Message
from torch import Tensor

from tzgen.config.options import options
from tzgen.config.stability import stability_problems
from tzgen.config.tasks import TaskSpec
from tzgen.embeddings import Groups, Ragged
from tzgen.errors import Problem, UserError
from tzgen.models.base import (
    MODELS,
    GroupRule,
    Model,
    Outputs,
    integer_sequence,
    ragged_group,
    real_numbers,
)
from tzgen.models.hstu_options import (
    candidate_time_readers,
    chosen_preprocessor,
    contextual_tokens,
    history_time_readers,
    hstu_options,
    is_interleaved,
    reads_watchtime,
)
from tzgen.models.multi_task import extraction_problems, make_experts
from tzgen.modules.contextual_mlp import swish_mlp
from tzgen.modules.mlp import MLPOptions
from tzgen.modules.sequence import Events, first_time, last_time
from tzgen.modules.towers import FusionMTLTower
from tzgen.modules.transducer import HSTUTransducer
from tzgen.ops import jagged

JAGGED = ("JAGGED_SEQUENCE",)


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
        hstu = hstu_options(config.hstu)
        self.channel = hstu.name or "uih"
        self.oldest_first = config.sequence_timestamp_is_ascending
        self.contextual_widths = _contextual_widths(widths)
        self.concat_contextual = config.concat_contextual_features
        contextual_len, contextual_dim = _contextual_shape(
            self.contextual_widths, self.concat_contextual
        )
        candidate_dim = sum(widths["candidate"])
        dim = hstu.stu.embedding_dim
        self.transducer = HSTUTransducer(
            hstu,
            uih_dim=sum(widths[self.channel]),
            candidate_dim=candidate_dim,
            contextual_dim=contextual_dim,
            contextual_len=contextual_len,
            max_seq_len=config.max_seq_len,
            kernel=kernel,
        )
        self.item_mlp = swish_mlp(candidate_dim, config.item_embedding_hidden_dim, dim)
        tower = config.fusion_mtl_tower
        experts, experts_dim = make_experts(tower, dim, len(tasks))
        self.tower = FusionMTLTower(
            dim,
            mlp=options(MLPOptions, tower.mlp) if tower.HasField("mlp") else None,
            outputs={task.name: task.num_class for task in tasks},
            experts=experts,
            experts_dim=experts_dim,
        )
        self.reads_history_time = bool(history_time_readers(config.hstu))
        self.reads_candidate_time = bool(candidate_time_readers(config.hstu))

    def forward(self, groups: Groups) -> Outputs:
        """Outputs with one logit (or num_class of them) a task and candidate."""
        events = self.events(groups)
        user = self.transducer(events)
        item = self.item_mlp(events.candidates)
        return Outputs(logits=self.tower(user, item), repeat=events.num_candidates)

    def events(self, groups: Groups) -> Events:
        """The groups as the transducer reads them: history turned oldest first if need be."""
        uih, candidate = ragged_group(groups, self.channel), ragged_group(groups, "candidate")
        order = None
        if not self.oldest_first:
            order = jagged.flip_index(uih.lengths, uih.values.size(0))

        def history(value: Ragged, name: str) -> Tensor:
            if value.values.size(0) != uih.values.size(0):
                raise UserError(
                    f"group {name!r} has {value.values.size(0)} steps and {self.channel!r} "
                    f"{uih.values.size(0)}; expected one for each event. Their columns differ."
                )
            return value.values if order is None else value.values.index_select(0, order)

        def optional(suffix: str, wanted: bool) -> Tensor | None:
            name = f"{self.channel}_{suffix}"
            return history(integer_sequence(groups, name), name) if wanted else None

        preprocessor = self.transducer.preprocessor
        watchtimes = None
        if preprocessor.reads_watchtime:
            name = f"{self.channel}_watchtime"
            watchtimes = history(ragged_group(groups, name), name).reshape(-1)
        times = optional("timestamp", self.reads_history_time)
        if times is None:
            times = uih.lengths.new_zeros(uih.values.size(0))
        requests = candidate.lengths.new_zeros(candidate.values.size(0))
        if self.reads_candidate_time:
            requests = integer_sequence(groups, "candidate_timestamp").values
        newest = last_time if self.oldest_first else first_time
        return Events(
            uih=real_numbers(history(uih, self.channel)),
            uih_lengths=uih.lengths,
            uih_timestamps=times,
            candidates=real_numbers(candidate.values),
            num_candidates=candidate.lengths,
            candidate_timestamps=requests,
            query_time=newest(
                requests,
                candidate.lengths,
                last_time(times, uih.lengths, torch.zeros_like(uih.lengths)),
            ),
            max_uih_len=uih.max_len,
            max_candidates=candidate.max_len,
            contextual=self._contextual(groups),
            actions=optional("action", preprocessor.reads_actions),
            watchtimes=watchtimes,
        )

    def _contextual(self, groups: Groups) -> Tensor | None:
        """[B, C, Dx], or None without contextual features."""
        if not self.contextual_widths:
            return None
        value = groups.get("contextual")
        if not isinstance(value, Tensor):
            raise UserError(f"group 'contextual': found {type(value).__name__}; expected DEEP")
        tokens, width = _contextual_shape(self.contextual_widths, self.concat_contextual)
        return real_numbers(value).view(-1, tokens, width)

    @classmethod
    def required_groups(cls, config: Message) -> tuple[GroupRule, ...]:
        hstu = config.hstu
        channel = hstu.name or "uih"
        chosen = chosen_preprocessor(hstu)
        has_actions = chosen is not None and chosen.HasField("action_encoder")
        watchtime = has_actions and chosen is not None and reads_watchtime(chosen.action_encoder)
        history_time, request_time = history_time_readers(hstu), candidate_time_readers(hstu)
        return (
            GroupRule("contextual", ("DEEP", "SEQUENCE"), "dlrm_hstu", required=False),
            GroupRule(channel, JAGGED, "dlrm_hstu"),
            GroupRule("candidate", JAGGED, "dlrm_hstu"),
            GroupRule(f"{channel}_action", JAGGED, "action_encoder", has_actions),
            GroupRule(f"{channel}_watchtime", JAGGED, "watchtime_to_action_thresholds", watchtime),
            GroupRule(
                f"{channel}_timestamp",
                JAGGED,
                ", ".join(history_time) or "nothing",
                bool(history_time),
            ),
            GroupRule(
                "candidate_timestamp",
                JAGGED,
                ", ".join(request_time) or "nothing",
                bool(request_time),
            ),
        )

    @classmethod
    def check(
        cls, model_config: Message, widths: Mapping[str, tuple[int, ...]] | None = None
    ) -> list[Problem]:
        config = model_config.dlrm_hstu
        problems = super().check(model_config, widths)
        problems += _structure_problems(config, "model_config.dlrm_hstu")
        tokens = contextual_tokens(model_config, concat=config.concat_contextual_features)
        problems += stability_problems(config.hstu, "model_config.dlrm_hstu.hstu", tokens)
        tower = config.fusion_mtl_tower
        if tower.HasField("ple"):
            problems += extraction_problems(
                tower.ple, "model_config.dlrm_hstu.fusion_mtl_tower.ple"
            )
        if widths is not None and not problems:
            problems += _width_problems(config, widths, "model_config.dlrm_hstu")
        return problems


def _contextual_widths(widths: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(widths.get("contextual", ()))


def _contextual_shape(widths: tuple[int, ...], concat: bool) -> tuple[int, int]:
    """Number of contextual tokens and their width."""
    if not widths:
        return 0, 0
    return (1, sum(widths)) if concat else (len(widths), widths[0])


def _structure_problems(config: Message, path: str) -> Iterator[Problem]:
    """Combinations that contradict each other."""
    hstu = config.hstu
    mtgr = hstu.mtgr if hstu.HasField("mtgr") else None
    chosen = chosen_preprocessor(hstu)
    if is_interleaved(hstu) and chosen is not None and not chosen.HasField("action_encoder"):
        yield Problem(
            f"{path}.hstu.input_preprocessor.contextual_interleave_preprocessor",
            "no action_encoder",
            "actions to put between the items",
            "Add action_encoder and action_mlp, or set enable_interleaving: false.",
        )
    if mtgr is None:
        return
    if mtgr.timestamp_mask and is_interleaved(hstu):
        yield Problem(
            f"{path}.hstu.mtgr.timestamp_mask",
            "timestamp_mask with interleaved actions",
            "one token an event",
            "An action has its item's time, and would not see it: use contextual_preprocessor.",
        )
    if mtgr.group_layer_norm and hstu.stu.use_group_norm:
        yield Problem(
            f"{path}.hstu.stu.use_group_norm",
            "use_group_norm with mtgr.group_layer_norm",
            "one norm of the attention's output",
            "Remove one of the two.",
        )
    if mtgr.realtime_len and not mtgr.timestamp_mask:
        yield Problem(
            f"{path}.hstu.mtgr.realtime_len",
            str(mtgr.realtime_len),
            "timestamp_mask, which it belongs to",
            "Set timestamp_mask: true, or remove it.",
        )


def _width_problems(
    config: Message, widths: Mapping[str, tuple[int, ...]], path: str
) -> Iterator[Problem]:
    contextual = _contextual_widths(widths)
    if len(set(contextual)) > 1 and not config.concat_contextual_features:
        yield Problem(
            "model_config.feature_groups (contextual)",
            f"features of widths {list(contextual)}",
            "one width: each feature becomes a token",
            f"Make their embedding_dim equal, or set {path}.concat_contextual_features.",
        )
    chosen = chosen_preprocessor(config.hstu)
    if chosen is None:
        return
    uih, candidate = sum(widths[config.hstu.name or "uih"]), sum(widths["candidate"])
    encoder = chosen.content_encoder.WhichOneof("content_encoder")
    if encoder in ("slice_content_encoder", "pad_content_encoder") and candidate < uih:
        yield Problem(
            f"{path}.hstu.input_preprocessor content_encoder.{encoder}",
            f"candidates of width {candidate} after a history of width {uih}",
            "candidates at least as wide as the history",
            "Use mlp_content_encoder, or give both groups the same features.",
        )
    for name in ("content_mlp", "action_mlp"):
        if getattr(chosen, name).HasField("parameterized_mlp") and not contextual:
            yield Problem(
                f"{path}.hstu.input_preprocessor {name}.parameterized_mlp",
                "no group contextual",
                "contextual features, which the weights are made from",
                "Add the group, or use simple_mlp.",
            )
