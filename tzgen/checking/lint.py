# SPDX-License-Identifier: Apache-2.0
"""What can be said about a config without reading a row: problems, substitutes, notes."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch

from tzgen import build
from tzgen import config as configs
from tzgen.checking import text
from tzgen.config.tasks import task_specs
from tzgen.embeddings import EmbeddingGroup, check_optimizer, optimizer_spec
from tzgen.embeddings.plan import make_plan
from tzgen.errors import ConfigError, Problem, UserError
from tzgen.features import create_features
from tzgen.models.base import MODELS


@dataclass(frozen=True)
class Lint:
    """`refused`: problems; `replaced`: done by other means; `notes`: probably not meant."""

    refused: tuple[Problem, ...]
    replaced: tuple[str, ...]
    notes: tuple[str, ...]


def lint(config: Any, *, strict: bool, device: torch.device) -> Lint:
    """Every problem at once; with `strict` a substitute is one."""
    substitutes = configs.replaced(config)
    refused = build.validate(config, ("model_dir",))  # rows can be made up
    if not refused:
        refused = _widths(config) + _optimizer(config, device)
    if strict:
        refused += [
            Problem("--strict", told, "nothing replaced", "Remove the field, or drop --strict.")
            for told in substitutes
        ]
    return Lint(tuple(dict.fromkeys(refused)), tuple(substitutes), tuple(configs.notes(config)))


def engine_of(config: Any) -> str:
    """The engine that training would use here: "local" or "torchrec"."""
    train = config.train_config
    asked = train.DESCRIPTOR.fields_by_name["embedding_engine"].enum_type.values_by_number[
        train.embedding_engine
    ]
    if asked.name == "AUTO":
        return "torchrec" if importlib.util.find_spec("torchrec") else "local"
    return str(asked.name).lower()


def _widths(config: Any) -> list[Problem]:
    """What is known only once the tables are planned; nothing is allocated."""
    model = MODELS[config.model_config.WhichOneof("model")]
    groups = config.model_config.feature_groups
    found: list[Problem] = []
    try:
        features = create_features(config)
        meta = torch.device("meta")
        planned = EmbeddingGroup(
            features, groups, engine="local", pointwise=model.pointwise, device=meta
        )
        found += model.check(config.model_config, planned.widths)
        if engine_of(config) == "torchrec" and config.HasField("train_config"):
            make_plan(features, groups, pointwise=model.pointwise, fused=True)
    except ConfigError as error:
        found += error.problems
    return found


def _optimizer(config: Any, device: torch.device) -> list[Problem]:
    """Whether the engine has the sparse optimizer on this device; none is right without tables."""
    if config.train_config.sparse_optimizer.WhichOneof("optimizer") is None:
        return []
    try:
        spec = optimizer_spec(config.train_config.sparse_optimizer)
        check_optimizer(spec, engine=engine_of(config), device=device)
    except UserError as error:
        where = "train_config.sparse_optimizer"
        found = str(config.train_config.sparse_optimizer.WhichOneof("optimizer"))
        expected = f"an optimizer of the {engine_of(config)} engine on {device}"
        return [Problem(where, found, expected, str(error))]
    return []


def lint_section(config: Any, found: Lint, source: str) -> str:
    """The first screen: what the config is, and what is wrong with it."""
    lines = text.fields(_summary(config, found))
    if found.refused:
        lines += ["", f"  {text.plural(len(found.refused), 'problem')}"]
        for number, problem in enumerate(found.refused, start=1):
            lines += ["", f"  {number:>2}. {problem.path}"]
            lines += text.fields(
                [
                    ("found", problem.value),
                    ("expected", problem.expected),
                    ("remedy", problem.remedy),
                ],
                indent=6,
            )
    if found.replaced:
        lines += ["", "  replaced: works, by other means than were asked for"]
        lines += text.bullets(found.replaced)
    if found.notes:
        lines += ["", "  notes: allowed, and probably not meant"]
        lines += text.bullets(found.notes)
    return text.section(f"config {source}", lines)


def _summary(config: Any, found: Lint) -> list[tuple[str, str]]:
    kind = config.model_config.WhichOneof("model") or "none"
    rows = [("model", kind)]
    if kind in MODELS:
        tasks = task_names(config)
        rows.append(("tasks", ", ".join(tasks) or "none"))
        refs, groups = configs.features_of(config), configs.groups_of(config)
        told = f"{text.plural(len(refs), 'feature')} in {text.plural(len(groups), 'group')}"
        rows.append(("features", told))
    counts = (
        text.plural(len(found.refused), "problem"),
        f"{len(found.replaced)} replaced",
        text.plural(len(found.notes), "note"),
    )
    return [*rows, ("found", ", ".join(counts))]


def task_names(config: Any) -> list[str]:
    """Names of the tasks; a single unnamed one by its label."""
    tasks = task_specs(config.model_config, config.data_config.label_fields)
    return [task.name or task.label_name for task in tasks]
