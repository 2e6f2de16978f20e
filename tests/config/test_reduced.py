# SPDX-License-Identifier: Apache-2.0
"""Groups leave with the features that nobody else reads."""

from __future__ import annotations

from tzgen.config import parse_pipeline
from tzgen.config.reduced import without_groups

TEXT = """
feature_configs { raw_feature { feature_name: "spare" expression: "user:spare" } }
feature_configs { id_feature { feature_name: "user" expression: "user:user" num_buckets: 9 } }
feature_configs { sequence_feature { sequence_name: "next" features {
  raw_feature { feature_name: "item" expression: "item:item" } } } }
feature_configs { sequence_feature { sequence_name: "uih" features {
  raw_feature { feature_name: "item" expression: "item:item" } } } }
model_config {
  feature_groups { group_name: "uih" feature_names: "uih__item" group_type: JAGGED_SEQUENCE }
  feature_groups {
    group_name: "target" feature_names: ["next__item", "user"] group_type: JAGGED_SEQUENCE
  }
  feature_groups { group_name: "user" feature_names: "user" group_type: DEEP }
}
"""


def test_a_group_leaves_with_what_only_it_reads() -> None:
    config = parse_pipeline(TEXT)
    reduced = without_groups(config, ("target",))
    assert [group.group_name for group in reduced.model_config.feature_groups] == ["uih", "user"]
    kinds = [entry.WhichOneof("feature") for entry in reduced.feature_configs]
    assert kinds == ["raw_feature", "id_feature", "sequence_feature"]
    assert reduced.feature_configs[2].sequence_feature.sequence_name == "uih"
    assert len(config.feature_configs) == 4


def test_a_config_without_the_group_is_itself() -> None:
    config = parse_pipeline(TEXT)
    assert without_groups(config, ("absent",)) is config
