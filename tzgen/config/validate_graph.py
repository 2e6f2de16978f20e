# SPDX-License-Identifier: Apache-2.0
"""Checks of the inputs of generated features (FG_NORMAL, FG_DAG): present, known, acyclic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from google.protobuf.message import Message

from tzgen.config.features import FeatureRef, features_of, fg_mode_of, required_inputs
from tzgen.config.schema import nearest, suggestion
from tzgen.errors import Problem

_SIDES = ("user", "item", "context", "feature", "const")
_FREE_KEYS = ("ALL", "*")  # MatchFeature: a key that matches every entry


def graph_problems(config: Message) -> Iterator[Problem]:
    """Missing inputs, unknown sides, `feature:x` without a feature x, and cycles."""
    if fg_mode_of(config.data_config) not in ("FG_NORMAL", "FG_DAG"):
        return
    refs = features_of(config)
    by_name = {ref.name: ref for ref in refs}
    edges: dict[str, list[str]] = {}
    for ref in refs:
        given = ref.inputs()
        for name in required_inputs(ref):
            if name not in [field for field, _ in given]:
                yield Problem(
                    f"{ref.path}.{name}",
                    "nothing",
                    "an input such as user:column",
                    "Features are generated here: set it, or read ready columns with FG_NONE.",
                )
        for name, text in given:
            problem, target = _input(ref, name, text, by_name)
            if problem is not None:
                yield problem
            elif target is not None:
                edges.setdefault(ref.name, []).append(target)
    yield from _cycles(refs, edges)


def _input(
    ref: FeatureRef, name: str, text: str, by_name: Mapping[str, FeatureRef]
) -> tuple[Problem | None, str | None]:
    """What is wrong with one input, or the feature that it reads."""
    side, colon, rest = text.partition(":")
    path = f"{ref.path}.{name}"
    if ref.kind == "match_feature" and text in _FREE_KEYS:
        return None, None
    if not colon or not rest:
        remedy = "Write side:name, side one of " + ", ".join(_SIDES) + "."
        return Problem(path, repr(text), "side:name", remedy), None
    if side not in _SIDES:
        return Problem(path, repr(text), "a known side", suggestion(side, _SIDES)), None
    if side != "feature":
        return None, None
    inside = f"{ref.prefix}{rest}"
    target = inside if inside in by_name else rest
    if target not in by_name:
        near = nearest(rest, by_name)
        hint = f"Did you mean feature:{near}? " if near else ""
        remedy = f"{hint}Configure it, or read a column with user:, item: or context:."
        return Problem(path, repr(text), "a feature that is configured", remedy), None
    return None, target


def _cycles(refs: Sequence[FeatureRef], edges: Mapping[str, Sequence[str]]) -> Iterator[Problem]:
    """Each cycle once, named at its first feature in the order of the text."""
    paths = {ref.name: ref.path for ref in refs}
    done: set[str] = set()
    for root in paths:
        trail: list[str] = []
        pending = [(root, 0)]
        while pending:  # depth first, without recursion: chains may be long
            name, at = pending.pop()
            if at == 0:
                if name in done:
                    continue
                trail.append(name)
            below = edges.get(name, ())
            if at == len(below):
                trail.pop()
                done.add(name)
                continue
            pending.append((name, at + 1))
            target = below[at]
            if target in trail:
                ring = [*trail[trail.index(target) :], target]
                yield Problem(
                    paths[target],
                    " -> ".join(ring),
                    "inputs that do not lead back",
                    "Remove one of these inputs.",
                )
            elif target not in done:
                pending.append((target, 0))
