# SPDX-License-Identifier: Apache-2.0
"""Which features have to be equally long."""

from __future__ import annotations

from tzgen.features import create_features
from tzgen.features.sequence import base_of, equally_long

from .feature_world import make_config

GROUPED = """feature_configs { sequence_feature { sequence_name: "s"
  features { raw_feature { feature_name: "a" } } features { raw_feature { feature_name: "b" } } } }
"""


def raw(name: str, kind: str = "sequence_raw_feature") -> str:
    return f'feature_configs {{ {kind} {{ feature_name: "{name}" }} }}'


def group(name: str, kind: str, *names: str) -> str:
    listed = ", ".join(f'"{n}"' for n in names)
    fields = f'group_name: "{name}" group_type: {kind} feature_names: [{listed}]'
    return f"feature_groups {{ {fields} }}"


def sets(*parts: str, padded: bool = False) -> set[frozenset[str]]:
    groups = "".join(part for part in parts if part.startswith("feature_groups"))
    features = "".join(part for part in parts if not part.startswith("feature_groups"))
    config = make_config(f"{features} model_config {{ {groups} }}")
    found = equally_long(config, create_features(config), padded=padded)
    assert sum(map(len, found)) == len(set().union(*found))  # disjoint
    return {frozenset(names) for names in found}


def test_sets() -> None:
    free = (raw("c"), raw("d"), raw("u", "raw_feature"))
    assert sets(GROUPED, *free) == {frozenset({"s__a", "s__b"}), frozenset("c"), frozenset("d")}
    jagged = group("uih", "JAGGED_SEQUENCE", "c", "u")
    beside = group("uih_timestamp", "JAGGED_SEQUENCE", "d")
    together = {frozenset({"s__a", "s__b"}), frozenset({"c", "d"})}
    assert sets(GROUPED, *free, jagged, beside) == together
    bridge = group("all", "JAGGED_SEQUENCE", "s__a", "c")
    assert sets(GROUPED, *free, bridge) == {frozenset({"s__a", "s__b", "c"}), frozenset("d")}
    padded = group("x", "SEQUENCE", "c", "d")
    assert frozenset({"c", "d"}) not in sets(*free, padded)
    assert frozenset({"c", "d"}) in sets(*free, padded, padded=True)


def test_nested_sequence_groups() -> None:
    features = (raw("c"), raw("d"), raw("q"), raw("u", "raw_feature"))
    nested = """feature_groups { group_name: "deep" group_type: DEEP feature_names: "u"
      sequence_groups { group_name: "x" feature_names: ["u", "q", "c", "d"] } }"""
    query = group("candidate", "DEEP", "q")
    assert sets(*features, nested, query, padded=True) == {frozenset({"c", "d"}), frozenset("q")}
    assert sets(*features, nested, padded=True) == {frozenset({"c", "d", "q"})}
    assert sets(*features, nested, query) == {frozenset("c"), frozenset("d"), frozenset("q")}


def test_base_names() -> None:
    names = ["uih", "uih_action", "uih_watchtime", "candidate_timestamp", "_time"]
    assert [base_of(name) for name in names] == ["uih", "uih", "uih", "candidate", "_time"]
