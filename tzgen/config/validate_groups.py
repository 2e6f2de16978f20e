# SPDX-License-Identifier: Apache-2.0
"""Checks of model_config.feature_groups against the features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from google.protobuf.message import Message

from tzgen.config.features import FeatureRef, GroupRef, features_of, groups_of
from tzgen.config.schema import suggestion
from tzgen.errors import Problem


def group_problems(config: Message) -> Iterator[Problem]:
    """Names, unknown members, sequences where they do not belong or do not align."""
    features = {ref.name: ref for ref in features_of(config)}
    groups = groups_of(config)
    if not groups:
        yield Problem(
            "model_config.feature_groups",
            "nothing",
            "at least one group",
            "Say what the model reads.",
        )
    yield from _names(groups)
    for group in groups:
        yield from _members(group, features)
        yield from _sequences(group, [features[n] for n in group.feature_names if n in features])
        if group.parent is None:
            yield from _encoders(group)


def is_sequential(ref: FeatureRef) -> bool:
    """Whether a sequence group can hold the feature as a sequence; a text's tokens can be one."""
    tokens = ref.kind == "tokenize_feature" and ref.message.tokens_as_sequence
    return ref.is_sequence or bool(tokens)


def _names(groups: Sequence[GroupRef]) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for group in groups:
        if group.parent is None and not group.name:
            yield Problem(
                f"{group.path}.group_name", "nothing", "a name", "Models find groups by name."
            )
        elif group.message.group_name and group.name in first:
            yield Problem(
                f"{group.path}.group_name",
                repr(group.name),
                "a name of its own",
                f"{first[group.name]} has it already: merge them, or rename one.",
            )
        elif group.message.group_name:
            first[group.name] = group.path


def _members(group: GroupRef, features: Mapping[str, FeatureRef]) -> Iterator[Problem]:
    nested = group.parent is None and len(group.message.sequence_groups) > 0
    if not group.feature_names and not nested:
        yield Problem(
            f"{group.path}.feature_names",
            f"group {group.name!r} without features",
            "at least one",
            "List its features, or remove the group.",
        )
    seen: set[str] = set()
    for index, name in enumerate(group.feature_names):
        path = f"{group.path}.feature_names[{index}]"
        if name in seen:
            yield Problem(path, repr(name), f"each feature once in {group.name!r}", "Remove one.")
        elif name not in features:
            yield Problem(
                path,
                repr(name),
                "a feature of feature_configs",
                suggestion(name, sorted(features), limit=12),
            )
        elif features[name].message.stub_type:
            yield Problem(
                path,
                f"{name!r} with stub_type",
                "a feature that the model may read",
                f"Remove stub_type from {features[name].path}, or the feature from the group.",
            )
        seen.add(name)


def _sequences(group: GroupRef, members: Sequence[FeatureRef]) -> Iterator[Problem]:
    sequences = [ref for ref in members if is_sequential(ref)]
    if group.kind == "JAGGED_SEQUENCE":
        for ref in members:
            if ref not in sequences:
                yield Problem(
                    f"{group.path}.feature_names",
                    f"{ref.name!r}, which is no sequence",
                    f"sequences only: {group.name!r} is a JAGGED_SEQUENCE group",
                    "Use a sequence_ feature, or put it into a DEEP group.",
                )
    if group.parent is not None and members and not sequences:
        yield Problem(
            f"{group.path}.feature_names",
            f"no sequence in {group.name!r}",
            "a sequence, and the features that attend to it",
            "Add a sequence_ feature or a member of a sequence_feature.",
        )
    if group.kind in ("SEQUENCE", "JAGGED_SEQUENCE"):
        lengths = {ref.sequence_length: ref for ref in reversed(sequences) if ref.sequence_length}
        if len(lengths) > 1:
            shown = ", ".join(f"{ref.name} {length}" for length, ref in sorted(lengths.items()))
            yield Problem(
                f"{group.path}.feature_names",
                f"sequence_length {shown}",
                f"one length for all sequences of {group.name!r}",
                "They are cut to different lengths and would no longer align: set one length.",
            )


def _encoders(group: GroupRef) -> Iterator[Problem]:
    nested = [inner.group_name for inner in group.message.sequence_groups]
    known = [name for name in nested if name] or [group.name]
    for index, encoder in enumerate(group.message.sequence_encoders):
        member = encoder.WhichOneof("seq_module")
        path = f"{group.path}.sequence_encoders[{index}]"
        if member is None:
            yield Problem(
                path, "nothing", "an encoder such as din_encoder", "Write it, or remove the entry."
            )
            continue
        wanted = getattr(encoder, member).input
        if wanted and wanted not in (*known, group.name):
            yield Problem(
                f"{path}.{member}.input",
                repr(wanted),
                "a sequence group",
                suggestion(wanted, known),
            )


def unused_features(config: Message) -> list[str]:
    """Features that no group and no other feature, loss or metric reads; they cost parsing only."""
    used = {name for group in groups_of(config) for name in group.feature_names}
    for ref in features_of(config):
        for _, text in ref.inputs():
            side, _, rest = text.partition(":")
            if side == "feature":
                used |= {rest, f"{ref.prefix}{rest}"}
    return [ref.name for ref in features_of(config) if ref.name not in used]
