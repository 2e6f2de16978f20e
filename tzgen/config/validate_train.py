# SPDX-License-Identifier: Apache-2.0
"""Checks of paths, data_config and train_config; lengths of features and model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from google.protobuf.message import Message

from tzgen.config.features import FeatureRef, features_of, groups_of
from tzgen.config.schema import join, suggestion, walk
from tzgen.config.validate_features import has_table
from tzgen.config.validate_tasks import TYPE_ALIASES
from tzgen.errors import Problem

_PATHS = {
    "train_input_path": "rows to train on",
    "eval_input_path": "rows to evaluate on",
    "model_dir": "checkpoints and logs",
}


def path_problems(config: Message, names: Sequence[str]) -> Iterator[Problem]:
    """Those of `names` that are empty."""
    for name in names:
        if not getattr(config, name).strip():
            remedy = f"Set it in the file or with --{name}."
            yield Problem(name, "nothing", f"a path for {_PATHS[name]}", remedy)


def data_problems(config: Message) -> Iterator[Problem]:
    """data_config."""
    data = config.data_config
    if not data.HasField("dataset_type"):
        yield Problem(
            "data_config.dataset_type",
            "nothing, which TorchEasyRec reads as OdpsDataset",
            "ParquetDataset or CsvDataset",
            "Set it: MaxCompute is not supported yet.",
        )
    for name in ("batch_size", "eval_batch_size", "shuffle_window"):
        if getattr(data, name) == 0 and (data.HasField(name) or name != "eval_batch_size"):
            yield Problem(f"data_config.{name}", "0", "a number above 0", f"Set {name}.")
    if bool(data.sample_cost_field) != bool(data.batch_cost_size):
        yield Problem(
            "data_config.batch_cost_size",
            f"{data.batch_cost_size} with sample_cost_field {data.sample_cost_field!r}",
            "both or neither",
            "sample_cost_field names the cost of a row, batch_cost_size bounds their sum.",
        )
    for name in ("label_fields", "sample_weight_fields"):
        values = list(getattr(data, name))
        for index, value in enumerate(values):
            if value in values[:index]:
                path = f"data_config.{name}[{index}]"
                yield Problem(path, repr(value), "each column once", "Remove one.")
    if data.HasField("sliding_window"):
        yield from _window(data.sliding_window, "data_config.sliding_window")
    yield from _columns(data)


def _window(window: Message, path: str) -> Iterator[Problem]:
    """sliding_window: pairs of columns, and room for a history."""
    history, target = list(window.history), list(window.target)
    if not history or len(history) != len(target):
        shown = f"{len(history)} history and {len(target)} target columns"
        remedy = 'For example history: "uih__item_id" target: "target__item_id".'
        yield Problem(f"{path}.history", shown, "as many of both, at least one", remedy)
    if window.max_items < 1:
        yield Problem(f"{path}.max_items", "0", "at least 1", "Raise it.")


def _columns(data: Message) -> Iterator[Problem]:
    for index, field in enumerate(data.input_fields):
        if not field.input_name:
            path = f"data_config.input_fields[{index}].input_name"
            yield Problem(path, "nothing", "a column name", "Name it, or remove the entry.")
    kinds = [value.name for value in data.DESCRIPTOR.file.enum_types_by_name["FieldType"].values]
    for part in data.input_fields_str.split(";"):
        if not part.strip():
            continue
        name, colon, kind = (piece.strip() for piece in part.partition(":"))
        if not (name and colon):
            remedy = 'Write "name1:TYPE1;name2:TYPE2".'
            yield Problem("data_config.input_fields_str", repr(part), "name:TYPE", remedy)
        elif TYPE_ALIASES.get(kind.upper(), kind.upper()) not in kinds:
            remedy = suggestion(kind.upper(), [*kinds, *TYPE_ALIASES])
            yield Problem("data_config.input_fields_str", repr(part), "a known type", remedy)
    if data.HasField("delimiter") and len(data.delimiter) != 1:
        path = "data_config.delimiter"
        yield Problem(path, repr(data.delimiter), "one character", 'For example "," or "\\t".')


def train_problems(config: Message) -> Iterator[Problem]:
    """train_config, where there is one."""
    if not config.HasField("train_config"):
        return
    train = config.train_config
    steps, epochs = train.HasField("num_steps"), train.HasField("num_epochs")
    if steps == epochs:
        found = (
            f"num_steps {train.num_steps} and num_epochs {train.num_epochs}" if steps else "neither"
        )
        remedy = "Remove one." if steps else "Set one: num_epochs: 1 is one pass over the rows."
        yield Problem("train_config.num_steps", found, "num_steps or num_epochs", remedy)
    for name in ("num_steps", "num_epochs", "log_step_count_steps"):
        if train.HasField(name) and getattr(train, name) == 0:
            yield Problem(f"train_config.{name}", "0", "a number above 0", f"Set {name}.")
    if train.dense_optimizer.WhichOneof("optimizer") is None:
        remedy = "For example dense_optimizer { adam_optimizer { lr: 0.001 } }."
        yield Problem("train_config.dense_optimizer", "nothing", "an optimizer", remedy)
    tables = any(has_table(ref) for ref in features_of(config))
    if tables and train.sparse_optimizer.WhichOneof("optimizer") is None:
        remedy = "For example sparse_optimizer { rowwise_adagrad_optimizer { lr: 0.01 } }."
        yield Problem("train_config.sparse_optimizer", "nothing", "an optimizer", remedy)
    yield from _patterns(train)
    yield from _schedules(train)
    if train.HasField("early_stopping"):
        path = "train_config.early_stopping"
        if not train.early_stopping.metric:
            remedy = "For example auc_is_click."
            yield Problem(join(path, "metric"), "nothing", "a configured metric", remedy)
        if not config.eval_input_path:
            remedy = "Set eval_input_path: it stops by evaluations."
            yield Problem(path, "no eval_input_path", "rows to evaluate", remedy)


def _patterns(train: Message) -> Iterator[Problem]:
    for index, part in enumerate(train.dense_optimizer.part_optimizers):
        path = f"train_config.dense_optimizer.part_optimizers[{index}]"
        try:
            re.compile(part.regex_pattern)
        except re.error as error:
            place = join(path, "regex_pattern")
            yield Problem(place, repr(part.regex_pattern), "a regular expression", f"{error}.")
        if not part.regex_pattern:
            remedy = "It says which parameters this optimizer has."
            yield Problem(join(path, "regex_pattern"), "nothing", "a regular expression", remedy)
        if part.WhichOneof("optimizer") is None:
            yield Problem(path, "no optimizer", "an optimizer", "For example sgd_optimizer {}.")


_NEEDED = {
    "ExponentialDecayLR": ("decay_size",),
    "CosineAnnealingLR": ("T_max",),
    "CosineAnnealingWarmRestartsLR": ("T_0",),
    "LinearDecayLR": ("num_training_steps",),
}


def _schedules(train: Message) -> Iterator[Problem]:
    for path, message in walk(train, "train_config"):
        fields = message.DESCRIPTOR.fields_by_name
        if "lr" in fields and message.lr < 0:
            yield Problem(join(path, "lr"), f"{message.lr:g}", "0 or more", "Set a learning rate.")
        for name in _NEEDED.get(message.DESCRIPTOR.name, ()):
            if getattr(message, name) == 0:
                yield Problem(join(path, name), "0", "a length above 0", f"Set {name}.")
        if message.DESCRIPTOR.name == "ManualStepLR":
            sizes, rates = list(message.schedule_sizes), list(message.learning_rates)
            if len(sizes) != len(rates) or not sizes:
                found = f"{len(sizes)} sizes and {len(rates)} rates"
                remedy = "Each entry of schedule_sizes starts the rate at its place."
                yield Problem(join(path, "learning_rates"), found, "as many as sizes", remedy)
            elif sizes != sorted(set(sizes)):
                place = join(path, "schedule_sizes")
                yield Problem(place, str(sizes), "ascending numbers", "Sort them.")


def max_seq_len(config: Message) -> int:
    """Tokens that one row of the model may have; 0 for models without such a bound."""
    name = config.model_config.WhichOneof("model")
    model = getattr(config.model_config, name) if name else None
    known = model is not None and "max_seq_len" in model.DESCRIPTOR.fields_by_name
    return int(model.max_seq_len) if model is not None and known else 0


def history_tokens(config: Message) -> dict[str, int]:
    """Group -> tokens of a full history; two for each event where content and action interleave."""
    name = config.model_config.WhichOneof("model")
    model = getattr(config.model_config, name) if name else None
    field = None if model is None else model.DESCRIPTOR.fields_by_name.get("hstu")
    if model is None or field is None or field.message_type.name != "HSTU":
        return {}
    channels = model.hstu if field.is_repeated else [model.hstu]
    found = {}
    for hstu in channels:
        events = group_length(config, hstu.name or "uih")
        interleave = hstu.input_preprocessor.contextual_interleave_preprocessor
        twice = interleave.enable_interleaving and hstu.input_preprocessor.HasField(
            "contextual_interleave_preprocessor"
        )
        found[hstu.name or "uih"] = events * (2 if twice else 1)
    return found


def group_length(config: Message, group_name: str) -> int:
    """The longest sequence_length in a group; 0 where none is set."""
    features = {ref.name: ref for ref in features_of(config)}
    members: Sequence[FeatureRef] = [
        features[name]
        for group in groups_of(config)
        if group.name == group_name
        for name in group.feature_names
        if name in features
    ]
    return max((ref.sequence_length for ref in members), default=0)
