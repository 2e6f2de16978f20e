# SPDX-License-Identifier: Apache-2.0
"""Checks of the architecture: layer shapes, STU, experts. Each model checks its own groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from google.protobuf.message import Message

from tzgen.config.allowlists import choices_for, parse_activation
from tzgen.config.schema import join, suggestion, walk
from tzgen.config.stability import stability_problems
from tzgen.config.support import EARLIER
from tzgen.errors import Problem, UserError


def model_problems(config: Message) -> Iterator[Problem]:
    """Every message below model_config by its type, then the model as a whole."""
    for path, message in walk(config.model_config, "model_config"):
        check = _CHECKS.get(message.DESCRIPTOR.name)
        if check is not None:
            yield from check(message, path)
        yield from _activations(message, path)


def word_problems(config: Message) -> Iterator[Problem]:
    """String fields with a closed set of words (allowlists.CHOICES), anywhere in the config."""
    for path, message in walk(config):
        for field, value in message.ListFields():
            words = choices_for(message.DESCRIPTOR.name, field.name)
            if words is None:
                continue
            for word in value if field.is_repeated else [value]:
                if word not in words:
                    remedy = suggestion(word, [repr(known).strip("'") for known in words])
                    yield Problem(join(path, field.name), repr(word), f"one of {words}", remedy)


def _activations(message: Message, path: str) -> Iterator[Problem]:
    for field, value in message.ListFields():
        if field.name == "activation" or field.name.endswith("_activation"):
            try:
                parse_activation(value)
            except UserError as error:
                expected = "an activation of the allow-list"
                yield Problem(join(path, field.name), repr(value), expected, str(error))


def _positive(message: Message, path: str, *names: str, hint: str = "") -> Iterator[Problem]:
    for name in names:
        if not getattr(message, name) > 0:
            found = str(getattr(message, name)) if message.HasField(name) else "nothing"
            yield Problem(join(path, name), found, "a number above 0", hint or f"Set {name}.")


def _present(message: Message, path: str, *names: str) -> Iterator[Problem]:
    """Messages that must be set, and whose oneof, if they are only that, must be chosen."""
    for name in names:
        inner = getattr(message, name)
        choices = list(inner.DESCRIPTOR.oneofs)
        today = [field for field in inner.DESCRIPTOR.fields if field.number < EARLIER]
        choice = len(choices) == 1 and all(field.containing_oneof for field in today)
        if not message.HasField(name):
            yield Problem(join(path, name), "nothing", f"{name} {{ ... }}", f"Add it to {path}.")
        elif choice and inner.WhichOneof(choices[0].name) is None:
            members = ", ".join(field.name for field in choices[0].fields)
            remedy = f"Write one of them inside {name} {{ }}."
            yield Problem(join(path, name), "an empty choice", f"one of {members}", remedy)


def _ratio(message: Message, path: str, *names: str) -> Iterator[Problem]:
    for name in names:
        value = getattr(message, name)
        if not 0 <= value < 1:
            remedy = "It is the share that is dropped; 0 drops nothing."
            yield Problem(join(path, name), f"{value:g}", "a number in [0, 1)", remedy)


def _mlp(message: Message, path: str) -> Iterator[Problem]:
    units = list(message.hidden_units)
    if not units or 0 in units:
        remedy = "Give the width of each layer, e.g. hidden_units: [256, 128]."
        yield Problem(join(path, "hidden_units"), str(units), "widths above 0", remedy)
    dropout = list(message.dropout_ratio)
    if len(dropout) not in (0, 1, len(units)):
        yield Problem(
            join(path, "dropout_ratio"),
            f"{len(dropout)} values for {len(units)} layers",
            "none, one for all, or one for each layer",
            "Add or remove values.",
        )
    for value in dropout:
        if not 0 <= value < 1:
            remedy = "It is the share that is dropped."
            yield Problem(join(path, "dropout_ratio"), f"{value:g}", "numbers in [0, 1)", remedy)
    if message.use_bn and message.use_ln:
        yield Problem(
            join(path, "use_ln"), "use_bn and use_ln", "one norm", "Remove one of the two."
        )


def _stu(message: Message, path: str) -> Iterator[Problem]:
    yield from _positive(message, path, "embedding_dim", "num_heads", "hidden_dim", "attention_dim")
    yield from _ratio(message, path, "output_dropout_ratio")
    letters = message.activated
    if set(letters) - set("uvqk") or len(set(letters)) != len(letters):
        remedy = 'For example "u" (production) or "uvqk" (the paper).'
        yield Problem(join(path, "activated"), repr(letters), "letters of uvqk, each once", remedy)
    if message.scaling_seqlen == 0:
        remedy = "Negative takes the model's max_seq_len."
        yield Problem(join(path, "scaling_seqlen"), "0", "a divisor above 0, or negative", remedy)
    if message.full_attn_tail and not message.max_attn_len:
        remedy = "It exempts the newest tokens from a window: set max_attn_len, or remove it."
        found = f"{message.full_attn_tail} without max_attn_len"
        yield Problem(join(path, "full_attn_tail"), found, "a window to be exempt from", remedy)
    if (message.sla_k1 or message.sla_k2) and message.max_attn_len:
        found = f"max_attn_len {message.max_attn_len} with semi-local attention"
        remedy = "sla_k1 is the window of semi-local attention: remove max_attn_len."
        yield Problem(join(path, "max_attn_len"), found, "one kind of window", remedy)


def _relative_bias(message: Message, path: str) -> Iterator[Problem]:
    yield from _positive(message, path, "num_time_buckets", "time_bucket_divisor")


def _positions(message: Message, path: str) -> Iterator[Problem]:
    yield from _positive(message, path, "num_position_buckets", "time_bucket_increments")
    if message.use_time_encoding:
        yield from _positive(message, path, "num_time_buckets", hint="use_time_encoding needs it.")


def _hstu(message: Message, path: str) -> Iterator[Problem]:
    needed = ("stu", "positional_encoder", "input_preprocessor", "output_postprocessor")
    yield from _present(message, path, *needed)
    yield from _positive(message, path, "attn_num_layers")
    yield from _ratio(message, path, "input_dropout_ratio")
    yield from stability_problems(message, path)
    yield from _truncation(message, path)
    stu = message.stu
    if (stu.sla_k1 or stu.sla_k2) and message.HasField("mtgr") and message.mtgr.timestamp_mask:
        found = f"semi-local attention (sla_k1 {stu.sla_k1}, sla_k2 {stu.sla_k2})"
        remedy = "Remove sla_k1 and sla_k2, or set mtgr { timestamp_mask: false }."
        expected = "one mask: mtgr.timestamp_mask orders tokens by time, not by place"
        yield Problem(join(path, "stu.sla_k1"), found, expected, remedy)


def _truncation(message: Message, path: str) -> Iterator[Problem]:
    split, tail = message.attn_truncation_split_layer, message.attn_truncation_tail_len
    if bool(split) != bool(tail):
        missing = "attn_truncation_tail_len" if split else "attn_truncation_split_layer"
        remedy = "Set both (where the history is cut, and what is left), or neither."
        yield Problem(join(path, missing), "nothing", "both fields or neither", remedy)
    elif split >= message.attn_num_layers > 0:
        found = f"{split} with attn_num_layers {message.attn_num_layers}"
        expected = f"a number from 1 to {message.attn_num_layers - 1}"
        remedy = "Layers before it see the whole history, the others its tail."
        if message.attn_num_layers == 1:
            expected, remedy = "at least two layers", "Raise attn_num_layers, or remove both."
        yield Problem(join(path, "attn_truncation_split_layer"), found, expected, remedy)


def _preprocessor(message: Message, path: str) -> Iterator[Problem]:
    yield from _present(message, path, "content_encoder", "content_mlp")
    yield from _action(message, path)


def _action(message: Message, path: str) -> Iterator[Problem]:
    if message.HasField("action_encoder"):
        yield from _present(message, path, "action_encoder", "action_mlp")
    elif message.HasField("action_mlp"):
        remedy = "Add action_encoder, or remove action_mlp."
        yield Problem(join(path, "action_mlp"), "no action_encoder", "both or neither", remedy)


def _action_encoder(message: Message, path: str) -> Iterator[Problem]:
    yield from _positive(message, path, "action_embedding_dim")
    if not message.action_weights:
        remedy = "One bitmask for each action, e.g. [1, 2, 4]."
        yield Problem(join(path, "action_weights"), "nothing", "bitmasks of actions", remedy)
    yield from _parallel(
        message, path, "watchtime_to_action_thresholds", "watchtime_to_action_weights"
    )


def _parallel(message: Message, path: str, left: str, right: str) -> Iterator[Problem]:
    first, second = len(getattr(message, left)), len(getattr(message, right))
    if first != second:
        found = f"{first} and {second} values"
        yield Problem(join(path, left), found, f"as many as {right}", "Add or remove values.")


def _content_mlps(message: Message, path: str) -> Iterator[Problem]:
    yield from _present(message, path, "uih_mlp", "target_mlp")
    widths = [list(mlp.hidden_units)[-1:] for mlp in (message.uih_mlp, message.target_mlp)]
    if widths[0] != widths[1] and all(widths):
        found = f"{widths[0][0]} and {widths[1][0]}"
        remedy = "History and candidates meet at this width: make the last hidden_units equal."
        yield Problem(join(path, "target_mlp"), found, "one output width", remedy)


def _hidden(message: Message, path: str) -> Iterator[Problem]:
    yield from _positive(message, path, "hidden_dim")


def _timestamp_norm(message: Message, path: str) -> Iterator[Problem]:
    units, per_period = "time_duration_period_units", "time_duration_units_per_period"
    if not getattr(message, units):
        remedy = "For example [3600, 86400] with units per period [24, 7]."
        yield Problem(join(path, units), "nothing", "seconds of each unit", remedy)
    yield from _parallel(message, path, units, per_period)


def _dlrm_hstu(message: Message, path: str) -> Iterator[Problem]:
    yield from _present(message, path, "hstu", "fusion_mtl_tower")
    yield from _positive(message, path, "max_seq_len", "item_embedding_hidden_dim")
    yield from _has_candidates(message.hstu, join(path, "hstu"))


def _ultra_hstu(message: Message, path: str) -> Iterator[Problem]:
    yield from _present(message, path, "fusion_mtl_tower")
    yield from _positive(message, path, "max_seq_len", "item_embedding_hidden_dim")
    if not message.hstu:
        remedy = "Write one hstu { name: ... } for each history of a user."
        yield Problem(join(path, "hstu"), "nothing", "at least one channel", remedy)
    for index, hstu in enumerate(message.hstu):
        yield from _has_candidates(hstu, join(path, f"hstu[{index}]"))


def _has_candidates(hstu: Message, path: str) -> Iterator[Problem]:
    if hstu.input_preprocessor.HasField("uih_preprocessor"):
        yield Problem(
            join(path, "input_preprocessor.uih_preprocessor"),
            "a preprocessor without candidates",
            "contextual_preprocessor or contextual_interleave_preprocessor",
            "uih_preprocessor belongs to hstu_match.",
        )


def _experts(message: Message, path: str) -> Iterator[Problem]:
    yield from _present(message, path, "expert_mlp")
    yield from _positive(message, path, "num_expert")


def _extraction_networks(message: Message, path: str) -> Iterator[Problem]:
    networks = list(message.extraction_networks)
    if not networks:
        place = join(path, "extraction_networks")
        yield Problem(place, "nothing", "at least one level", "Add extraction_networks { ... }.")
    names = [network.network_name for network in networks]
    for index, name in enumerate(names):
        if name in names[:index]:
            place = join(path, f"extraction_networks[{index}].network_name")
            yield Problem(place, repr(name), "a name of its own", "Rename it.")


def _extraction(message: Message, path: str) -> Iterator[Problem]:
    yield from _positive(message, path, "expert_num_per_task")
    yield from _present(message, path, "task_expert_net")
    if message.share_num and not message.HasField("share_expert_net"):
        yield from _present(message, path, "share_expert_net")


_CHECKS: Mapping[str, Callable[[Message, str], Iterator[Problem]]] = {
    "DlrmHSTU": _dlrm_hstu,
    "ExtractionNetwork": _extraction,
    "GRContextualInterleavePreprocessor": _preprocessor,
    "GRContextualPreprocessor": _preprocessor,
    "GRMLPContentEncoder": _content_mlps,
    "GRParameterizedContextualizedMLP": _hidden,
    "GRPositionalEncoder": _positions,
    "GRSimpleActionEncoder": _action_encoder,
    "GRSimpleContextualizedMLP": _hidden,
    "GRTimestampLayerNormPostprocessor": _timestamp_norm,
    "GRUIHPreprocessor": _action,
    "HSTU": _hstu,
    "MLP": _mlp,
    "MMoE": _experts,
    "MMoEExperts": _experts,
    "PLE": _extraction_networks,
    "PLEExperts": _extraction_networks,
    "RelativeBias": _relative_bias,
    "STU": _stu,
    "UltraHSTU": _ultra_hstu,
}
