# SPDX-License-Identifier: Apache-2.0
"""Older forms of TorchEasyRec's texts, rewritten to today's before anything else reads the config.

Two forms are known, in both of which the text itself says everything that is needed:

* RTP: TorchEasyRec joins the names of a grouped sequence with "_" where the environment asks for it
  (USE_RTP). Here the text decides: groups that name features so, and could mean nothing else.
* the first DlrmHSTU: features named in the model instead of in groups, SEQUENCE groups, labels that
  are features, and the action encoder's options one level higher.
"""

from __future__ import annotations

from google.protobuf.message import Message

from tzgen.config.features import features_of, groups_of

# Fields of the first DlrmHSTU -> the group that holds the feature today.
_GROUPS = {
    "uih_action_weight_feature_name": "uih_action",
    "uih_watchtime_feature_name": "uih_watchtime",
    "uih_action_time_feature_name": "uih_timestamp",
    "candidates_query_time_feature_name": "candidate_timestamp",
}
_LABELS = ("candidates_action_weight_feature_name", "candidates_watchtime_feature_name")
_SEQUENCES = {"uih_id_feature_name": "uih", "candidates_id_feature_name": "candidate"}
# Options that moved from action_encoder into simple_action_encoder.
_MOVED = (
    "action_embedding_dim",
    "action_weights",
    "watchtime_to_action_thresholds",
    "watchtime_to_action_weights",
)
_NAMED = ("action_feature_name", "watchtime_feature_name")


def modernise(config: Message) -> list[str]:
    """Rewrite `config` in place; one sentence for each form that was met, [] for today's texts."""
    notes = []
    if _joins_by_underscore(config):
        config.data_config.sequence_separator = "_"
        notes.append(
            "feature groups name grouped sequences with one underscore (TorchEasyRec's form for "
            'RTP): data_config.sequence_separator is "_", in names and in columns.'
        )
    if _is_first_dlrm_hstu(config):
        _rewrite_dlrm_hstu(config)
        notes.append(
            "model_config.dlrm_hstu is written for TorchEasyRec's first version: the features that "
            "it names became the groups uih_action, uih_timestamp, ..., and its labels labels."
        )
    return notes


def _joins_by_underscore(config: Message) -> bool:
    """Whether groups name grouped sequences `<sequence>_<feature>`, and no feature is called so."""
    if config.data_config.HasField("sequence_separator"):
        return False
    refs = features_of(config)
    joined = {
        f"{ref.sequence.sequence_name}_{ref.message.feature_name}" for ref in refs if ref.sequence
    }
    used = {name for group in groups_of(config) for name in group.feature_names}
    return bool((used & joined) - {ref.name for ref in refs}) and not used & {
        ref.name for ref in refs if ref.sequence
    }


def _is_first_dlrm_hstu(config: Message) -> bool:
    if config.model_config.WhichOneof("model") != "dlrm_hstu":
        return False
    model = config.model_config.dlrm_hstu
    return any(model.HasField(name) for name in (*_GROUPS, *_LABELS, *_SEQUENCES))


def _rewrite_dlrm_hstu(config: Message) -> None:
    model_config = config.model_config
    model = model_config.dlrm_hstu
    kinds = model_config.feature_groups.add().DESCRIPTOR.fields_by_name["group_type"].enum_type
    del model_config.feature_groups[-1]
    jagged = kinds.values_by_name["JAGGED_SEQUENCE"].number
    for group in model_config.feature_groups:
        if group.group_name in _SEQUENCES.values():
            group.group_type = jagged
        elif group.group_name == "contextual":
            group.group_type = kinds.values_by_name["DEEP"].number
    numbers = set()
    for field, group_name in _GROUPS.items():
        if model.HasField(field):
            name = getattr(model, field)
            numbers.add(name)
            model_config.feature_groups.add(
                group_name=group_name, feature_names=[name], group_type=jagged
            )
    labels = [getattr(model, field) for field in _LABELS if model.HasField(field)]
    _rewrite_features(config, numbers, set(labels))
    if not config.data_config.label_fields:
        config.data_config.label_fields.extend(labels)
    for field in (*_GROUPS, *_LABELS, *_SEQUENCES):
        model.ClearField(field)
    _rewrite_preprocessor(model.hstu.input_preprocessor.contextual_preprocessor)


def _rewrite_features(config: Message, numbers: set[str], labels: set[str]) -> None:
    """Ids without a table become numbers, as which they were used; labels are no features."""
    kept = []
    for entry in config.feature_configs:
        member = entry.WhichOneof("feature")
        name = getattr(entry, member).feature_name if member != "sequence_feature" else ""
        if name in labels - numbers:
            continue
        if name in numbers and member == "sequence_id_feature":
            old = entry.sequence_id_feature
            length, delim = old.sequence_length, old.sequence_delim
            entry.sequence_raw_feature.feature_name = name
            if length:
                entry.sequence_raw_feature.sequence_length = length
            entry.sequence_raw_feature.sequence_delim = delim
        kept.append(type(entry).FromString(entry.SerializeToString()))
    del config.feature_configs[:]
    config.feature_configs.extend(kept)


def _rewrite_preprocessor(preprocessor: Message) -> None:
    preprocessor.ClearField("contextual_feature_to_max_length")
    encoder = preprocessor.action_encoder
    simple = encoder.simple_action_encoder
    for name in _MOVED:
        value = getattr(encoder, name)
        if encoder.DESCRIPTOR.fields_by_name[name].is_repeated:
            getattr(simple, name).extend(value)
        elif encoder.HasField(name):
            setattr(simple, name, value)
        encoder.ClearField(name)
    for name in _NAMED:
        encoder.ClearField(name)
    if not preprocessor.HasField("content_encoder"):
        preprocessor.content_encoder.slice_content_encoder.SetInParent()
