# SPDX-License-Identifier: Apache-2.0
"""The proto HSTU as the options that the transducer is built from, and what it reads."""

from __future__ import annotations

from google.protobuf.message import Message

from tzgen.config.options import options
from tzgen.modules.transducer import HSTUOptions


def hstu_options(message: Message) -> HSTUOptions:
    """Options of an HSTU message; preset PAPER turns the relative bias on with its defaults."""
    resolved = type(message)()
    resolved.CopyFrom(message)
    stu = resolved.stu
    if stu.preset == stu.PAPER and not stu.HasField("relative_bias"):
        stu.relative_bias.SetInParent()
    return options(HSTUOptions, resolved)


def channel_name(hstu: Message) -> str:
    """The group that holds the history of an HSTU message, and the first part of its others."""
    return str(hstu.name or "uih")


def chosen_preprocessor(hstu: Message) -> Message | None:
    """The member of input_preprocessor that is set."""
    name = hstu.input_preprocessor.WhichOneof("input_preprocessor")
    return None if name is None else getattr(hstu.input_preprocessor, name)


def is_interleaved(hstu: Message) -> bool:
    """Whether events are two tokens, content and action."""
    name = hstu.input_preprocessor.WhichOneof("input_preprocessor")
    chosen = chosen_preprocessor(hstu)
    return (
        name == "contextual_interleave_preprocessor"
        and chosen is not None
        and bool(chosen.enable_interleaving)
    )


def history_time_readers(hstu: Message) -> list[str]:
    """Fields that make the model read the times of history events."""
    readers = []
    if hstu.positional_encoder.use_time_encoding:
        readers.append("positional_encoder.use_time_encoding")
    stu = hstu.stu
    if (stu.HasField("relative_bias") or stu.preset == stu.PAPER) and stu.relative_bias.use_time:
        readers.append("stu.relative_bias.use_time")
    if hstu.HasField("mtgr") and hstu.mtgr.timestamp_mask:
        readers.append("mtgr.timestamp_mask")
    return readers


def candidate_time_readers(hstu: Message) -> list[str]:
    """Fields that make the model read the times of the requests."""
    readers = history_time_readers(hstu)
    if hstu.output_postprocessor.HasField("timestamp_layernorm_postprocessor"):
        readers.append("output_postprocessor.timestamp_layernorm_postprocessor")
    return readers


def reads_watchtime(encoder: Message) -> bool:
    """Whether a GRActionEncoder derives actions from watch times."""
    return len(encoder.simple_action_encoder.watchtime_to_action_thresholds) > 0


def contextual_tokens(model_config: Message, *, concat: bool) -> int:
    """How many contextual tokens each row starts with: one a feature, or one for all of them."""
    names = [
        name
        for group in model_config.feature_groups
        if group.group_name == "contextual"
        for name in group.feature_names
    ]
    return min(len(names), 1) if concat else len(names)
