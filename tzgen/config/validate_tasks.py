# SPDX-License-Identifier: Apache-2.0
"""Checks of the tasks: names, labels, bitmasks, losses, sample weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from google.protobuf.message import Message

from tzgen.config.features import groups_of
from tzgen.config.schema import join, suggestion, walk
from tzgen.config.support import WITHOUT_TASKS
from tzgen.config.tasks import metric_problem, task_specs
from tzgen.errors import ConfigError, Problem

# Task message -> its name field.
_TASKS = {"FusionSubTaskConfig": "task_name", "TaskTower": "tower_name"}
TYPE_ALIASES = {"BIGINT": "INT64", "INT": "INT32"}
_BINARY = ("binary_cross_entropy", "binary_focal_loss")


def task_problems(config: Message) -> Iterator[Problem]:
    """Every task of the model against data_config."""
    tasks = [
        (path, message)
        for path, message in walk(config.model_config, "model_config")
        if message.DESCRIPTOR.name in _TASKS
    ]
    model = config.model_config.WhichOneof("model")
    if not tasks and model not in WITHOUT_TASKS:
        yield Problem(
            f"model_config.{model}",
            "no tasks",
            "at least one task",
            "Add task_configs or task_towers.",
        )
    types = input_types(config.data_config)
    candidates = any(group.name == "candidate" for group in groups_of(config))
    seen: dict[str, str] = {}
    for position, (path, task) in enumerate(tasks):
        yield from _name(path, task, seen)
        yield from _columns(path, task, config.data_config, position)
        yield from _bitmask(path, task, types)
        yield from _losses(path, task, candidates)
        yield from _weights(path, task)
    yield from _outputs(config, [path for path, _ in tasks] or ["model_config"])


def input_types(data_config: Message) -> Mapping[str, str]:
    """Column -> FieldType name, as far as input_fields and input_fields_str declare it."""
    found: dict[str, str] = {}
    for field in data_config.input_fields:
        if field.HasField("input_type"):
            kinds = field.DESCRIPTOR.fields_by_name["input_type"].enum_type.values_by_number
            found[field.input_name] = kinds[field.input_type].name
    for part in data_config.input_fields_str.split(";"):
        name, colon, kind = (piece.strip() for piece in part.partition(":"))
        if colon:
            found[name] = TYPE_ALIASES.get(kind.upper(), kind.upper())
    return found


def _name(path: str, task: Message, seen: dict[str, str]) -> Iterator[Problem]:
    field = _TASKS[task.DESCRIPTOR.name]
    name = getattr(task, field)
    if not name:
        remedy = "It names the outputs (probs_<name>) and metrics."
        yield Problem(join(path, field), "nothing", "a name", remedy)
    elif name in seen:
        remedy = f"{seen[name]} has it already: rename one."
        yield Problem(join(path, field), repr(name), "a name of its own", remedy)
    else:
        seen[name] = path


def _columns(path: str, task: Message, data_config: Message, position: int) -> Iterator[Problem]:
    labels = list(data_config.label_fields)
    if not task.label_name and position >= len(labels):  # else: the label field of its position
        yield Problem(join(path, "label_name"), "nothing", "a label column", suggestion("", labels))
    weights = list(data_config.sample_weight_fields)
    for field, known, where in (
        ("label_name", labels, "label_fields"),
        ("task_space_indicator_label", labels, "label_fields"),
        ("sample_weight_name", weights, "sample_weight_fields"),
    ):
        name = getattr(task, field)
        if name and name not in known:
            remedy = f"Add {where}: {name!r} to data_config. {suggestion(name, known)}"
            yield Problem(join(path, field), repr(name), f"one of data_config.{where}", remedy)


def _bitmask(path: str, task: Message, types: Mapping[str, str]) -> Iterator[Problem]:
    if "task_bitmask" not in task.DESCRIPTOR.fields_by_name or not task.task_bitmask:
        return
    place = join(path, "task_bitmask")
    kind = types.get(task.label_name, "INT64")
    if "INT" not in kind.split("_")[-1]:
        yield Problem(
            place,
            f"a bitmask of {task.label_name!r}, declared {kind}",
            "an integer label",
            "Declare the column INT64 (or a list of it), or remove task_bitmask.",
        )
    if task.num_class > 2:
        remedy = "A bitmask gives 0 or 1: lower num_class, or remove the bitmask."
        yield Problem(place, f"num_class {task.num_class}", "num_class 1 or 2", remedy)
    if task.task_bitmask >= 2**63:
        yield Problem(place, str(task.task_bitmask), "at most 63 bits", "Columns are signed int64.")


def _losses(path: str, task: Message, candidates: bool) -> Iterator[Problem]:
    """`candidates`: whether a row has several samples, which are a session where none is named."""
    if task.num_class < 1:
        remedy = "1 for binary and regression, the number of classes otherwise."
        yield Problem(join(path, "num_class"), "0", "at least 1", remedy)
    if not task.losses:
        yield Problem(
            join(path, "losses"),
            "nothing",
            "at least one loss",
            "For example losses { binary_cross_entropy {} }.",
        )
    for index, loss in enumerate(task.losses):
        member = loss.WhichOneof("loss") or loss.WhichOneof("sid_loss")
        place = join(path, f"losses[{index}]")
        if member is None:
            yield Problem(place, "nothing", "a loss", "For example binary_cross_entropy {}.")
        elif member == loss.WhichOneof("sid_loss"):
            remedy = "It belongs to tokenizers (sid_rqvae): remove it."
            yield Problem(f"{place}.{member}", member, "a loss of labels", remedy)
        elif member in _BINARY and task.num_class > 1:
            remedy = "Remove num_class, or use softmax_cross_entropy."
            yield Problem(f"{place}.{member}", f"num_class {task.num_class}", "num_class 1", remedy)
        elif member == "softmax_cross_entropy" and task.num_class < 2:
            remedy = "Set num_class, or use binary_cross_entropy."
            yield Problem(f"{place}.{member}", "num_class 1", "two classes or more", remedy)
        elif member == "jrc_loss":
            if task.num_class != 2:
                found = f"num_class {task.num_class}"
                yield Problem(f"{place}.{member}", found, "num_class 2", "Set num_class: 2.")
            if not (loss.jrc_loss.session_name or candidates):
                remedy = "Rows are single samples: name what they share, normally the user id."
                yield Problem(f"{place}.{member}.session_name", "nothing", "a feature", remedy)
    for index, metric in enumerate(task.metrics):
        member = metric.WhichOneof("metric")
        place = join(path, f"metrics[{index}]")
        if member is None:
            yield Problem(place, "nothing", "a metric", "For example auc {}.")
        elif member in ("grouped_auc", "grouped_xauc") and not getattr(metric, member).grouping_key:
            remedy = "Name the feature of the group, normally the user id."
            yield Problem(f"{place}.{member}.grouping_key", "nothing", "a feature", remedy)


def _outputs(config: Message, paths: Sequence[str]) -> Iterator[Problem]:
    """Losses of one task that read its output differently, and metrics that cannot measure it."""
    for path, spec in zip(
        paths, task_specs(config.model_config, config.data_config.label_fields), strict=False
    ):
        try:
            spec.output  # noqa: B018 - a property that checks
        except ConfigError as error:
            yield from error.problems
            continue
        for field, metrics in (("metrics", spec.metrics), ("train_metrics", spec.train_metrics)):
            for index, metric in enumerate(metrics):
                kind = metric.WhichOneof("metric")
                place = f"{join(path, field)}[{index}]"
                problem = metric_problem(f"{place}.{kind}", kind, spec) if kind else None
                if problem is not None:
                    yield problem


def _weights(path: str, task: Message) -> Iterator[Problem]:
    for field in ("weight", "in_task_space_weight", "out_task_space_weight"):
        value = getattr(task, field)
        if value < 0:
            yield Problem(
                join(path, field), f"{value:g}", "0 or more", "A weight is never negative."
            )
    low = task.pareto_min_loss_weight
    if not 0 <= low < 1:
        yield Problem(
            join(path, "pareto_min_loss_weight"), f"{low:g}", "a number in [0, 1)", "Lower it."
        )
