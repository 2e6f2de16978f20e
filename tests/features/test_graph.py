# SPDX-License-Identifier: Apache-2.0
"""Order of evaluation, unused stubs, cycles."""

from __future__ import annotations

import pytest

from tzgen.errors import ConfigError
from tzgen.features import create_features
from tzgen.features.graph import evaluation_order

from .feature_world import make_config


def raw(name: str, source: str, stub: bool = False) -> str:
    flag = "stub_type: true" if stub else ""
    fields = f'feature_name: "{name}" expression: "{source}" {flag}'
    return f"feature_configs {{ raw_feature {{ {fields} }} }}"


def order(*features: str) -> list[str]:
    config = make_config("data_config { fg_mode: FG_DAG }" + "".join(features))
    return [feature.name for feature in evaluation_order(create_features(config))]


def test_inputs_come_first_and_unused_stubs_drop_out() -> None:
    found = order(
        raw("c", "feature:b"),
        raw("b", "feature:a", stub=True),
        raw("unused", "user:y", stub=True),
        raw("a", "user:x", stub=True),
    )
    assert found == ["a", "b", "c"]


def test_circles_are_shown() -> None:
    with pytest.raises(ConfigError, match=r"-> a|-> b"):
        order(raw("a", "feature:b"), raw("b", "feature:a"))


def test_a_subset_has_to_hold_its_inputs() -> None:
    text = raw("base", "user:x", stub=True) + raw("top", "feature:base")
    features = create_features(make_config("data_config { fg_mode: FG_DAG }" + text))
    with pytest.raises(ConfigError, match="feature:base"):
        evaluation_order([feature for feature in features if feature.name == "top"])
