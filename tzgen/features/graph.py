# SPDX-License-Identifier: Apache-2.0
"""Which features have to be evaluated, and in which order."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter

from tzgen.errors import ConfigError, Problem
from tzgen.features.base import Feature


def evaluation_order(features: Sequence[Feature]) -> tuple[Feature, ...]:
    """The features that are no stubs and all that they need, inputs before their users.

    Under FG_NONE and FG_BUCKETIZE features have no features as inputs, so that stubs drop out.
    """
    by_name = {feature.name: feature for feature in features}
    needed: dict[str, tuple[str, ...]] = {}
    waiting = [feature.name for feature in features if not feature.stub]
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        if name not in by_name:
            raise _unknown(name, by_name)
        needed[name] = tuple(i.name for i in by_name[name].inputs if i.source == "feature")
        waiting += needed[name]
    try:
        order = tuple(TopologicalSorter(needed).static_order())
    except CycleError as error:
        path = " -> ".join(error.args[1])
        problem = Problem(
            "feature_configs", path, "no feature to be its own input", "Break the circle."
        )
        raise ConfigError([problem]) from error
    return tuple(by_name[name] for name in order)


def _unknown(name: str, known: Iterable[str]) -> ConfigError:
    near = difflib.get_close_matches(name, list(known), n=1)
    remedy = f"Did you mean {near[0]!r}?" if near else "Add it to feature_configs."
    expected = f"one of {', '.join(sorted(known))}"
    return ConfigError([Problem("feature_configs", f"input feature:{name}", expected, remedy)])
