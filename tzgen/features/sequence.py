# SPDX-License-Identifier: Apache-2.0
"""Which sequence features describe the same events: each row has equally many steps of all."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message

from tzgen.config.features import groups_of
from tzgen.features.base import Feature

_ALONGSIDE = ("_timestamp", "_action", "_watchtime")


def equally_long(
    config: Message, features: Sequence[Feature], *, padded: bool = False
) -> tuple[tuple[str, ...], ...]:
    """Disjoint sets of sequence features of equal lengths.

    Of one set are the features of a grouped sequence, and those of a jagged group and of the groups
    named alongside it (timestamps, actions); any other is a set by itself. With `padded` the steps
    of a SEQUENCE group and of nested sequence_groups are of one set too, for which the embedding
    layer asks; features of a vector group `candidate` are queries there, not steps.
    """
    sequences = {feature.name: feature for feature in features if feature.is_sequence}
    together: dict[str, list[str]] = {}
    for feature in sequences.values():
        together.setdefault(feature.sequence_name or feature.name, []).append(feature.name)
    groups = groups_of(config)
    queries = {
        name
        for group in groups
        if group.name == "candidate" and group.kind in ("DEEP", "WIDE")
        for name in group.feature_names
    }
    for group in groups:
        members = [name for name in group.feature_names if name in sequences]
        if group.kind == "JAGGED_SEQUENCE":
            together.setdefault(f"group {base_of(group.name)}", []).extend(members)
        elif padded and group.kind == "SEQUENCE":
            steps = [name for name in members if name not in queries]
            together.setdefault(f"group {group.path}", []).extend(steps)
    sets: list[dict[str, None]] = []
    for names in together.values():
        mine = dict.fromkeys(names)
        for other in [known for known in sets if known.keys() & mine.keys()]:
            sets.remove(other)
            mine = other | mine
        sets += [mine] if mine else []
    return tuple(tuple(names) for names in sets)


def base_of(group_name: str) -> str:
    """ "uih" for "uih_timestamp", "uih_action" and "uih_watchtime", which go alongside it."""
    for suffix in _ALONGSIDE:
        group_name = group_name.removesuffix(suffix)
    return group_name
