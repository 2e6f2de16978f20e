# SPDX-License-Identifier: Apache-2.0
"""A config with fewer inputs: what prediction does without."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tzgen.config.features import features_of
from tzgen.config.validate_groups import unused_features


def without_groups(config: Any, names: Collection[str]) -> Any:
    """The config without the feature groups `names` and the features that only they read.

    The config itself where it has none of them; else a copy. A grouped sequence goes when all of
    its features do.
    """
    groups = config.model_config.feature_groups
    if not any(group.group_name in names for group in groups):
        return config
    before = set(unused_features(config))
    reduced = type(config)()
    reduced.CopyFrom(config)
    kept = [group for group in groups if group.group_name not in names]
    del reduced.model_config.feature_groups[:]
    reduced.model_config.feature_groups.extend(kept)
    gone = set(unused_features(reduced)) - before
    owners: dict[int, set[str]] = {}
    for ref in features_of(config):
        index = int(ref.path.partition("[")[2].partition("]")[0])
        owners.setdefault(index, set()).add(ref.name)
    del reduced.feature_configs[:]
    for index, entry in enumerate(config.feature_configs):
        if not owners.get(index) or not owners[index] <= gone:
            reduced.feature_configs.append(entry)
    return reduced
