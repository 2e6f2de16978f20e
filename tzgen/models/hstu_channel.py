# SPDX-License-Identifier: Apache-2.0
"""The parts of HSTU rankers as their messages describe them, and what is wrong with these.

dlrm_hstu has one history, a channel, ultra_hstu several. What a channel reads: hstu_events.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from google.protobuf.message import Message

from tzgen.config.options import options
from tzgen.config.tasks import TaskSpec
from tzgen.errors import Problem
from tzgen.models.base import GroupRule
from tzgen.models.hstu_events import Channel
from tzgen.models.hstu_options import (
    candidate_time_readers,
    channel_name,
    chosen_preprocessor,
    history_time_readers,
    hstu_options,
    is_interleaved,
    reads_watchtime,
)
from tzgen.models.multi_task import make_experts
from tzgen.modules.mlp import MLPOptions
from tzgen.modules.towers import FusionMTLTower
from tzgen.modules.transducer import HSTUTransducer

JAGGED = ("JAGGED_SEQUENCE",)
Widths = Mapping[str, tuple[int, ...]]


def make_channel(config: Message, hstu: Message, widths: Widths) -> Channel:
    """`config`: the model's message, which says how rows are stored; `hstu`: the channel's."""
    chosen = chosen_preprocessor(hstu)
    has_actions = chosen is not None and chosen.HasField("action_encoder")
    watchtime = has_actions and chosen is not None and reads_watchtime(chosen.action_encoder)
    return Channel(
        name=channel_name(hstu),
        oldest_first=config.sequence_timestamp_is_ascending,
        contextual=_contextual_shape(config, widths),
        history_dim=sum(widths[channel_name(hstu)]),
        candidate_dim=sum(widths["candidate"]),
        reads_actions=has_actions,
        reads_watchtime=watchtime,
        reads_history_time=bool(history_time_readers(hstu)),
        reads_candidate_time=bool(candidate_time_readers(hstu)),
        needs_request_time=hstu.positional_encoder.use_time_encoding,
    )


def make_transducer(
    config: Message, hstu: Message, widths: Widths, *, kernel: str
) -> HSTUTransducer:
    contextual_len, contextual_dim = _contextual_shape(config, widths)
    return HSTUTransducer(
        hstu_options(hstu),
        uih_dim=sum(widths[channel_name(hstu)]),
        candidate_dim=sum(widths["candidate"]),
        contextual_dim=contextual_dim,
        contextual_len=contextual_len,
        max_seq_len=config.max_seq_len,
        kernel=kernel,
    )


def make_tower(config: Message, dim: int, tasks: Sequence[TaskSpec]) -> FusionMTLTower:
    """`fusion_mtl_tower` over user and item vectors of width `dim`."""
    tower = config.fusion_mtl_tower
    experts, experts_dim = make_experts(tower, dim, len(tasks))
    return FusionMTLTower(
        dim,
        mlp=options(MLPOptions, tower.mlp) if tower.HasField("mlp") else None,
        outputs={task.name: task.num_class for task in tasks},
        experts=experts,
        experts_dim=experts_dim,
    )


def group_rules(channels: Sequence[Message], model: str) -> tuple[GroupRule, ...]:
    """The groups that a model of these HSTU messages reads."""
    rules = [GroupRule("contextual", ("DEEP", "SEQUENCE"), model, required=False)]
    for hstu in channels:
        rules += _channel_rules(hstu, model)
    rules.append(GroupRule("candidate", JAGGED, model))
    times = dict.fromkeys(reader for hstu in channels for reader in candidate_time_readers(hstu))
    return (*rules, _time_rule("candidate_timestamp", list(times)))


def _channel_rules(hstu: Message, model: str) -> Iterator[GroupRule]:
    name = channel_name(hstu)
    chosen = chosen_preprocessor(hstu)
    has_actions = chosen is not None and chosen.HasField("action_encoder")
    watchtime = has_actions and chosen is not None and reads_watchtime(chosen.action_encoder)
    yield GroupRule(name, JAGGED, model)
    yield GroupRule(f"{name}_action", JAGGED, "action_encoder", has_actions)
    yield GroupRule(f"{name}_watchtime", JAGGED, "watchtime_to_action_thresholds", watchtime)
    yield _time_rule(f"{name}_timestamp", history_time_readers(hstu))


def _time_rule(name: str, readers: Sequence[str]) -> GroupRule:
    return GroupRule(name, JAGGED, ", ".join(readers) or "nothing", bool(readers))


def _contextual_shape(config: Message, widths: Widths) -> tuple[int, int]:
    """Number of contextual tokens and their width."""
    contextual = tuple(widths.get("contextual", ()))
    if not contextual:
        return 0, 0
    if config.concat_contextual_features:
        return 1, sum(contextual)
    return len(contextual), contextual[0]


def structure_problems(hstu: Message, path: str) -> Iterator[Problem]:
    """Combinations of a channel that contradict each other."""
    mtgr = hstu.mtgr if hstu.HasField("mtgr") else None
    chosen = chosen_preprocessor(hstu)
    if is_interleaved(hstu) and chosen is not None and not chosen.HasField("action_encoder"):
        yield Problem(
            f"{path}.input_preprocessor.contextual_interleave_preprocessor",
            "no action_encoder",
            "actions to put between the items",
            "Add action_encoder and action_mlp, or set enable_interleaving: false.",
        )
    if mtgr is None:
        return
    if mtgr.timestamp_mask and is_interleaved(hstu):
        yield Problem(
            f"{path}.mtgr.timestamp_mask",
            "timestamp_mask with interleaved actions",
            "one token an event",
            "An action has its item's time, and would not see it: use contextual_preprocessor.",
        )
    if mtgr.group_layer_norm and hstu.stu.use_group_norm:
        yield Problem(
            f"{path}.stu.use_group_norm",
            "use_group_norm with mtgr.group_layer_norm",
            "one norm of the attention's output",
            "Remove one of the two.",
        )
    if mtgr.realtime_len and not mtgr.timestamp_mask:
        yield Problem(
            f"{path}.mtgr.realtime_len",
            str(mtgr.realtime_len),
            "timestamp_mask, which it belongs to",
            "Set timestamp_mask: true, or remove it.",
        )


def contextual_problems(config: Message, widths: Widths, path: str) -> Iterator[Problem]:
    """Contextual features of different widths, which cannot each be a token."""
    contextual = widths.get("contextual", ())
    if len(set(contextual)) > 1 and not config.concat_contextual_features:
        yield Problem(
            "model_config.feature_groups (contextual)",
            f"features of widths {list(contextual)}",
            "one width: each feature becomes a token",
            f"Make their embedding_dim equal, or set {path}.concat_contextual_features.",
        )


def width_problems(hstu: Message, widths: Widths, path: str) -> Iterator[Problem]:
    """Groups whose widths the preprocessor of a channel cannot bring together."""
    chosen = chosen_preprocessor(hstu)
    if chosen is None:
        return
    uih, candidate = sum(widths[channel_name(hstu)]), sum(widths["candidate"])
    encoder = chosen.content_encoder.WhichOneof("content_encoder")
    if encoder in ("slice_content_encoder", "pad_content_encoder") and candidate < uih:
        yield Problem(
            f"{path}.input_preprocessor content_encoder.{encoder}",
            f"candidates of width {candidate} after a history of width {uih}",
            "candidates at least as wide as the history",
            "Use mlp_content_encoder, or give both groups the same features.",
        )
    for name in ("content_mlp", "action_mlp"):
        if getattr(chosen, name).HasField("parameterized_mlp") and not widths.get("contextual"):
            yield Problem(
                f"{path}.input_preprocessor {name}.parameterized_mlp",
                "no group contextual",
                "contextual features, which the weights are made from",
                "Add the group, or use simple_mlp.",
            )
