# SPDX-License-Identifier: Apache-2.0
"""The features and feature groups of a config under their full names, in one flat list each."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import Message

from tzgen.config.schema import is_map, is_message

_GROUPED = "sequence_feature"
_PREFIX = "sequence_"


@dataclass(frozen=True)
class FeatureRef:
    """One feature.

    name         feature_name, or `<sequence_name>__<feature_name>` inside a grouped sequence (the
                 two are joined by data_config.sequence_separator)
    kind         member of the oneof without the prefix "sequence_": "id_feature", "raw_feature"
    message      the feature's own message (IdFeature, RawFeature, ...)
    path         where it stands, e.g. "feature_configs[3].id_feature"
    sequence     the enclosing SequenceFeature of a grouped sequence, else None
    is_sequence  whether each event of a sequence is such a feature (both forms)
    """

    name: str
    kind: str
    message: Message
    path: str
    sequence: Message | None
    is_sequence: bool

    @property
    def prefix(self) -> str:
        """What a grouped sequence puts before its features' names: "uih_seq__"; else ""."""
        own = self.message.feature_name
        return self.name[: len(self.name) - len(own)] if self.sequence is not None else ""

    @property
    def sequence_length(self) -> int:
        """Events that are kept; 0 keeps all, and is what features that are no sequence have."""
        if not self.is_sequence:
            return 0
        if self.sequence is not None and self.sequence.sequence_length:
            return int(self.sequence.sequence_length)
        return int(self.message.sequence_length)

    def inputs(self) -> tuple[tuple[str, str], ...]:
        """(field, "side:name") of every input that the feature names, in schema order.

        A formula (expr_feature) names its inputs in `variables`.
        """
        names = _INPUT_FIELDS.get(self.kind, ("expression",))
        found: list[tuple[str, str]] = []
        for name in names:
            value = getattr(self.message, name)
            texts = [value] if isinstance(value, str) else list(value)
            found += [(name, text) for text in texts if text]
        return tuple(found)


_INPUT_FIELDS = {
    "lookup_feature": ("map", "key"),
    "match_feature": ("nested_map", "pkey", "skey"),
    "expr_feature": ("variables",),
    "overlap_feature": ("query", "title"),
    "kv_dot_product": ("query", "document"),
}


@dataclass(frozen=True)
class GroupRef:
    """One feature group, or one sequence group inside it.

    kind is "DEEP", "WIDE", "SEQUENCE" or "JAGGED_SEQUENCE"; a nested sequence group is "SEQUENCE"
    and has its group's name in `parent`.
    """

    name: str
    kind: str
    feature_names: tuple[str, ...]
    message: Message
    path: str
    parent: str | None = None


def features_of(config: Message) -> tuple[FeatureRef, ...]:
    """Every feature in the order of the text; entries without a kind are left out."""
    found: list[FeatureRef] = []
    for index, entry in enumerate(config.feature_configs):
        member = entry.WhichOneof("feature")
        if member is None:
            continue
        message = getattr(entry, member)
        path = f"feature_configs[{index}].{member}"
        if member == _GROUPED:
            found += _grouped(message, path, config.data_config.sequence_separator)
        else:
            found.append(
                FeatureRef(
                    name=message.feature_name,
                    kind=member.removeprefix(_PREFIX),
                    message=message,
                    path=path,
                    sequence=None,
                    is_sequence=member.startswith(_PREFIX),
                )
            )
    return tuple(found)


def _grouped(sequence: Message, path: str, separator: str) -> list[FeatureRef]:
    found = []
    for index, entry in enumerate(sequence.features):
        member = entry.WhichOneof("feature")
        if member is None:
            continue
        message = getattr(entry, member)
        found.append(
            FeatureRef(
                name=f"{sequence.sequence_name}{separator}{message.feature_name}",
                kind=member,
                message=message,
                path=f"{path}.features[{index}].{member}",
                sequence=sequence,
                is_sequence=True,
            )
        )
    return found


def groups_of(config: Message) -> tuple[GroupRef, ...]:
    """Every feature group in the order of the text, each followed by its nested sequence groups."""
    found: list[GroupRef] = []
    for index, group in enumerate(config.model_config.feature_groups):
        path = f"model_config.feature_groups[{index}]"
        kinds = group.DESCRIPTOR.fields_by_name["group_type"].enum_type.values_by_number
        kind = kinds[group.group_type].name
        found.append(GroupRef(group.group_name, kind, tuple(group.feature_names), group, path))
        for inner, nested in enumerate(group.sequence_groups):
            found.append(
                GroupRef(
                    nested.group_name or group.group_name,
                    "SEQUENCE",
                    tuple(nested.feature_names),
                    nested,
                    f"{path}.sequence_groups[{inner}]",
                    group.group_name,
                )
            )
    return tuple(found)


def fg_mode_of(data_config: Message) -> str:
    """FG_NONE, FG_NORMAL, FG_DAG or FG_BUCKETIZE; reads `fg_encoded` where fg_mode is unset."""
    if data_config.HasField("fg_mode") or not data_config.HasField("fg_encoded"):
        modes = data_config.DESCRIPTOR.fields_by_name["fg_mode"].enum_type.values_by_number
        return str(modes[data_config.fg_mode].name)
    return "FG_NONE" if data_config.fg_encoded else "FG_NORMAL"


def tables_of(ref: FeatureRef) -> tuple[str, ...]:
    """The fields of a feature that say how many ids it has; more than one contradict each other."""
    candidates = (
        "hash_bucket_size",
        "num_buckets",
        "vocab_list",
        "vocab_dict",
        "vocab_file",
        "boundaries",
    )
    found = []
    for name in (*candidates, "zch", "dynamicemb"):
        field = ref.message.DESCRIPTOR.fields_by_name.get(name)
        if field is None:
            continue
        value = getattr(ref.message, name)
        if is_message(field) and not is_map(field):
            if ref.message.HasField(name):
                found.append(name)
        elif len(value) if field.is_repeated else value:
            found.append(name)
    return tuple(found)


def required_inputs(ref: FeatureRef) -> tuple[str, ...]:
    """The fields that must name an input when the feature is generated."""
    return _INPUT_FIELDS.get(ref.kind, ("expression",))
