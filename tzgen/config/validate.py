# SPDX-License-Identifier: Apache-2.0
"""Everything that is wrong with a config, at once, before any row is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from google.protobuf.message import Message

from tzgen.config.features import features_of, groups_of
from tzgen.config.schema import walk
from tzgen.config.support import WITHOUT_TASKS, model_refusal, unsupported
from tzgen.config.validate_features import feature_problems
from tzgen.config.validate_graph import graph_problems
from tzgen.config.validate_groups import group_problems, unused_features
from tzgen.config.validate_model import model_problems, word_problems
from tzgen.config.validate_tasks import task_problems
from tzgen.config.validate_train import (
    data_problems,
    group_length,
    history_tokens,
    max_seq_len,
    path_problems,
    train_problems,
)
from tzgen.errors import ConfigError, Problem

# Checks in the order in which a reader of the config meets their subjects.
_CHECKS = (
    data_problems,
    train_problems,
    feature_problems,
    graph_problems,
    group_problems,
    model_problems,
    task_problems,
    word_problems,
)


TRAINING = ("train_input_path", "model_dir")  # the paths that training reads or writes


def validate(config: Message, paths: Sequence[str] = TRAINING) -> list[Problem]:
    """Every problem of a PipelineConfig; [] where it can be built.

    `paths`: the path fields that are going to be used, and so must not be empty.

    A model that is not supported gives that one refusal and nothing else: the rest of such a config
    cannot be judged.
    """
    refusal = model_refusal(config)
    if refusal is not None:
        return [refusal]
    found = [*unsupported(config), *path_problems(config, paths)]
    for check in _CHECKS:
        found += check(config)
    return _once(found)


def check(
    config: Message,
    source: str = "config",
    more: Iterable[Problem] = (),
    paths: Sequence[str] = TRAINING,
) -> None:
    """Raise ConfigError with every problem of `config`, and `more` that a caller found (models)."""
    found = _once([*validate(config, paths), *more])
    if found:
        raise ConfigError(found, source)


def notes(config: Message) -> list[str]:
    """What is allowed and probably not meant, one sentence each."""
    return list(_notes(config))


def _once(problems: Iterable[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))


def _notes(config: Message) -> Iterator[str]:
    if not config.HasField("train_config"):
        yield "train_config is not set: this config can evaluate and predict, not train."
    if not config.eval_input_path:
        yield "eval_input_path is not set: training will not evaluate."
    for field in ("losses", "metrics", "train_metrics"):
        own = config.model_config.WhichOneof("model") in WITHOUT_TASKS
        if len(getattr(config.model_config, field)) and not own:
            yield f"model_config.{field} is not read: the tasks of this model have their own."
    keys = set(_keys(config))
    for name in unused_features(config):
        if name not in keys:
            yield f"feature {name!r} is in no group and read by nothing: it only costs parsing."
    known = {ref.name for ref in features_of(config)}
    for key in sorted(keys - known):
        yield f"{key!r} names a group of rows and is no feature: a column of that name must exist."
    for ref in features_of(config):
        idle = ref.kind == "raw_feature" and ref.message.embedding_dim
        if idle and not ref.message.boundaries and ref.message.WhichOneof("dense_emb") is None:
            yield (
                f"{ref.path}.embedding_dim has no effect: without boundaries, autodis or mlp a "
                "raw_feature stays a number."
            )
    yield from _room(config)


def _keys(config: Message) -> Iterator[str]:
    """Features that losses, metrics and confidence intervals group rows by."""
    for _, message in walk(config):
        for field, value in message.ListFields():
            if field.name in ("grouping_key", "session_name", "confidence_key") and value:
                yield str(value)


def _room(config: Message) -> Iterator[str]:
    """Full rows that are longer than max_seq_len, which attention is scaled and biased by."""
    budget = max_seq_len(config)
    contextual = sum(len(g.feature_names) for g in groups_of(config) if g.name == "contextual")
    others = group_length(config, "candidate") + contextual
    for name, tokens in history_tokens(config).items():
        if tokens and tokens + others > budget > 0:
            yield (
                f"group {name!r} keeps {tokens} tokens, candidates and contextual features "
                f"{others}: above max_seq_len {budget}, the divisor of attention and the reach of "
                "relative bias. Nothing is cut: raise max_seq_len, or lower sequence_length."
            )
