# SPDX-License-Identifier: Apache-2.0
"""What the feature groups of a config ask for: tables, lookups and columns, as plain values.

A feature in a group is a *column* at one of three levels: "row" (one vector a row of the batch),
"step" (one a step of a sequence) or "candidate" (pointwise models: one a candidate, all candidates
of all rows laid end to end). A *lookup* is a feature's ids in one table at "row" or "step" level.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tzgen.embeddings.init import init_problem
from tzgen.errors import ConfigError, Problem
from tzgen.features.tables import DenseEncoder, TableSpec, merge_tables
from tzgen.protos.model_pb2 import FeatureGroupConfig, FeatureGroupType

CANDIDATE = "candidate"
QUERY = ".query"
WIDE_DIM = 4  # TorchEasyRec's width of wide tables: fbgemm wants multiples of 4
SEQUENCE_KINDS = ("SEQUENCE", "JAGGED_SEQUENCE")
ENCODERS_WITH_QUERY = ("din_encoder", "simple_attention", "multi_window_din_encoder")
ENCODERS = (*ENCODERS_WITH_QUERY, "pooling_encoder", "self_attention_encoder")


class FeatureLike(Protocol):
    """What is read of a tzgen.features.Feature."""

    @property
    def name(self) -> str: ...
    @property
    def is_sequence(self) -> bool: ...
    @property
    def is_sparse(self) -> bool: ...
    @property
    def value_dim(self) -> int: ...
    @property
    def output_dim(self) -> int: ...
    @property
    def table(self) -> TableSpec | None: ...
    @property
    def encoder(self) -> DenseEncoder | None: ...
    @property
    def weighted(self) -> bool: ...


@dataclass(frozen=True)
class Lookup:
    """The ids of a feature in a table. `single`: no bag has more than one id."""

    key: str
    feature: str
    table: str
    level: str
    mode: str
    single: bool
    weighted: bool


@dataclass(frozen=True)
class Column:
    """A feature in a group; `lookup` is a Lookup.key, or None for numbers."""

    feature: str
    width: int
    level: str
    lookup: str | None = None


@dataclass(frozen=True)
class Encoder:
    """A sequence encoder of a DEEP group; `message` its config, `input` a name in `Plan.inner`."""

    kind: str
    name: str
    input: str
    message: Any


@dataclass(frozen=True)
class Group:
    """columns: the sequence of a sequence group, else everything; query: what attends to it."""

    name: str
    kind: str
    columns: tuple[Column, ...]
    query: tuple[Column, ...] = ()
    encoders: tuple[Encoder, ...] = ()

    @property
    def is_sequence(self) -> bool:
        return any(column.level == "step" for column in self.columns)


@dataclass(frozen=True)
class Plan:
    """Everything the embedding layer builds. `inner`: sequence groups nested in DEEP groups."""

    tables: dict[str, TableSpec]
    lookups: dict[str, Lookup]
    groups: tuple[Group, ...]
    inner: dict[str, Group]
    dense: dict[str, DenseEncoder]
    pointwise: bool
    candidate: str | None = None  # a feature that has one value a candidate, when pointwise

    def by_step(self) -> set[str]:
        """Tables used by a sequence, which must give a row an id."""
        return {one.table for one in self.lookups.values() if one.level == "step"}

    def sequences(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(group, features) whose lengths must agree in every batch."""
        for group in (*self.groups, *self.inner.values()):
            names = tuple(c.feature for c in group.columns if c.level in ("step", "candidate"))
            if len(names) > 1:
                yield group.name, names


@dataclass
class _Planner:
    """Collects while walking the groups; problems are reported all at once."""

    features: dict[str, FeatureLike]
    members: frozenset[str]  # features that are per candidate
    wide_dim: int
    wide_init: str
    tables: list[TableSpec] = field(default_factory=list)
    lookups: dict[str, Lookup] = field(default_factory=dict)
    inner: dict[str, Group] = field(default_factory=dict)
    encoder_names: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, path: str, value: str, expected: str, remedy: str) -> None:
        self.problems.append(Problem(path, value, expected, remedy))

    def column(
        self, path: str, name: str, suffix: str, *, wide: bool, pooled: bool
    ) -> Column | None:
        """One feature of a group; None after a problem. `pooled`: its steps become one vector."""
        feature = self.features.get(name)
        if feature is None:
            self.problem(path, repr(name), "a feature of feature_configs", "Add or correct it.")
            return None
        level = "step" if feature.is_sequence else "row"
        if feature.is_sequence and name in self.members:
            level = "candidate"
        elif feature.is_sequence and pooled:
            level = "row"
        if feature.table is None:
            if wide or (feature.is_sequence and level == "row"):
                self.problem(
                    path,
                    f"{name}, numbers",
                    "features with a table: sequences of numbers are not pooled, wide is ids only",
                    "Use boundaries, or a SEQUENCE or DEEP group.",
                )
                return None
            return Column(name, feature.output_dim, level)
        lookup = self.lookup(
            feature, feature.table, suffix, "row" if level == "row" else "step", wide
        )
        return Column(name, self.wide_dim if wide else feature.table.embedding_dim, level, lookup)

    def lookup(
        self, feature: FeatureLike, spec: TableSpec, suffix: str, level: str, wide: bool
    ) -> str:
        if wide:
            init = self.wide_init or spec.init_fn
            spec = replace(
                spec, name=f"{spec.name}_wide", embedding_dim=self.wide_dim, init_fn=init
            )
        if suffix:
            spec = replace(spec, name=f"{spec.name}_{suffix}")
        self.tables.append(spec)
        key = f"{feature.name}|{spec.name}|{level}"
        single = feature.value_dim == 1 and (level == "step" or not feature.is_sequence)
        self.lookups[key] = Lookup(
            key, feature.name, spec.name, level, spec.pooling.lower(), single, feature.weighted
        )
        return key

    def columns(self, path: str, names: Iterable[str], suffix: str, kind: str) -> list[Column]:
        pooled, wide = kind in ("DEEP", "WIDE"), kind == "WIDE"
        made = (self.column(path, name, suffix, wide=wide, pooled=pooled) for name in names)
        return [column for column in made if column is not None]

    def group(self, config: FeatureGroupConfig) -> Group:
        name, kind = config.group_name, FeatureGroupType.Name(config.group_type)
        path = f"feature_groups {name!r}"
        if not config.feature_names and not config.sequence_groups:
            self.problem(path, "no features", "feature_names", "Add some, or remove the group.")
        columns = self.columns(path, config.feature_names, config.embedding_name_suffix, kind)
        if kind in SEQUENCE_KINDS:
            if config.sequence_groups or config.sequence_encoders:
                self.problem(
                    path,
                    f"sequence_groups in a {kind} group",
                    "them in a DEEP group",
                    "Make the group DEEP.",
                )
            return split_query(name, kind, columns)
        return Group(name, kind, tuple(columns), encoders=tuple(self.encoders(path, config)))

    def encoders(self, path: str, config: FeatureGroupConfig) -> Iterator[Encoder]:
        mine: dict[str, Group] = {}
        for nested in config.sequence_groups:
            name = nested.group_name or (
                config.group_name if len(config.sequence_groups) == 1 else ""
            )
            suffix = nested.embedding_name_suffix or config.embedding_name_suffix
            if not name or name in self.inner or name in mine:
                self.problem(
                    f"{path} sequence_groups",
                    f"group_name {name!r}",
                    "a name of its own for each sequence group of the model",
                    "Set group_name.",
                )
            columns = self.columns(f"{path} {name!r}", nested.feature_names, suffix, "SEQUENCE")
            mine[name] = split_query(name, "SEQUENCE", columns)
        used = set()
        for index, choice in enumerate(config.sequence_encoders):
            kind = choice.WhichOneof("seq_module") or "no encoder"
            where = f"{path} sequence_encoders[{index}]"
            if kind not in ENCODERS:
                self.problem(
                    where, kind, f"one of {', '.join(ENCODERS)}", "Choose another encoder."
                )
                continue
            message = getattr(choice, kind)
            source = message.input or (next(iter(mine)) if len(mine) == 1 else "")
            used.add(source)
            if source not in mine:
                self.problem(where, f"input {source!r}", f"one of {sorted(mine)}", "Correct input.")
                continue
            self.check_encoder(where, kind, message, mine[source])
            name = message.name or f"{config.group_name}_seq_encoder_{index}"
            if name in self.encoder_names or "." in name:
                self.problem(where, f"name {name!r}", "a name of its own without '.'", "Rename it.")
            self.encoder_names.add(name)
            yield Encoder(kind, name, source, message)
        for name in sorted(mine.keys() - used):
            self.problem(
                path, f"sequence group {name!r} without encoder", "a sequence_encoder", "Add one."
            )
        self.inner.update(mine)

    def check_encoder(self, path: str, kind: str, message: Any, group: Group) -> None:
        steps = sum(column.width for column in group.columns)
        query = sum(column.width for column in group.query)
        if not group.is_sequence:
            self.problem(
                path, "no sequence features", "at least one", "Add it to the sequence group."
            )
        if kind in ENCODERS_WITH_QUERY and not 0 < query <= steps:
            self.problem(
                path,
                f"a query of {query} values for steps of {steps}",
                "a query no wider than a step",
                "Put the query's features into the sequence group, or narrow them.",
            )
        scored = kind in ("din_encoder", "multi_window_din_encoder")
        if scored and not message.attn_mlp.hidden_units:
            self.problem(path, "attn_mlp without hidden_units", "a width a layer", "Add them.")
        if kind == "multi_window_din_encoder" and not message.windows_len:
            self.problem(path, "no windows_len", "the length of each window", "Add them.")


def split_query(name: str, kind: str, columns: Sequence[Column]) -> Group:
    """Steps are the sequence, the rest is the query; without steps everything is one vector."""
    if not any(column.level == "step" for column in columns):
        return Group(name, kind, tuple(columns))
    steps = tuple(column for column in columns if column.level == "step")
    return Group(name, kind, steps, query=tuple(c for c in columns if c.level != "step"))


def make_plan(
    features: Sequence[FeatureLike],
    feature_groups: Sequence[FeatureGroupConfig],
    *,
    pointwise: bool = False,
    wide_embedding_dim: int | None = None,
    wide_init_fn: str = "",
    fused: bool = False,
) -> Plan:
    """Raises ConfigError with every problem. `fused`: for fbgemm, which wants widths of 4."""
    known = {feature.name: feature for feature in features}
    members: list[str] = []
    for config in feature_groups:
        if pointwise and config.group_name == CANDIDATE:
            names = [n for n in config.feature_names if n in known and known[n].is_sequence]
            members.extend(names)
    planner = _Planner(known, frozenset(members), wide_embedding_dim or WIDE_DIM, wide_init_fn)
    names = [config.group_name for config in feature_groups]
    for name in sorted({name for name in names if names.count(name) > 1}):
        planner.problem("feature_groups", f"{name!r} twice", "unique group_name", "Rename one.")
    groups = tuple(planner.group(config) for config in feature_groups)
    tables = merge_tables(planner.tables)
    planner.problems.extend(_table_problems(tables.values(), fused))
    if planner.problems:
        raise ConfigError(planner.problems)
    used = {c.feature for g in (*groups, *planner.inner.values()) for c in (*g.columns, *g.query)}
    dense = {n: f.encoder for n, f in known.items() if n in used and f.encoder is not None}
    candidate = members[0] if members else None
    return Plan(tables, planner.lookups, groups, planner.inner, dense, pointwise, candidate)


def _table_problems(tables: Iterable[TableSpec], fused: bool) -> Iterator[Problem]:
    for table in tables:
        path = f"table {table.name!r}"
        if "." in table.name or "|" in table.name or "@" in table.name:
            yield Problem(path, "the name", "no '.', '|' or '@' in it", "Rename embedding_name.")
        if table.num_embeddings < 1 or table.embedding_dim < 1:
            size = f"{table.num_embeddings} x {table.embedding_dim}"
            yield Problem(path, size, "rows and embedding_dim above 0", "Set them.")
        if fused and table.embedding_dim % 4:
            yield Problem(
                path,
                f"embedding_dim {table.embedding_dim}",
                "a multiple of 4, which fbgemm's fused tables need",
                "Round it, or use the local engine.",
            )
        if table.data_type not in ("FP32", "FP16"):
            yield Problem(path, f"data_type {table.data_type}", "FP32 or FP16", "Use one of them.")
        problem = init_problem(table.init_fn)
        if problem:
            yield Problem(path, f"init_fn {table.init_fn!r}", "one that is known", problem)
