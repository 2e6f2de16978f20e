# SPDX-License-Identifier: Apache-2.0
"""What the embedding layer has to allocate: tables of ids and encoders of numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from google.protobuf.message import Message

from tzgen.errors import ConfigError, Problem


@dataclass(frozen=True)
class Constraints:
    """What the sharding planner may choose from; empty tuples leave it free."""

    sharding_types: tuple[str, ...] = ()
    compute_kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableSpec:
    """One embedding table, [num_embeddings, embedding_dim].

    Features with one `name` share it. `pooling` ("SUM" or "MEAN") belongs to the feature, not to
    the table: it says how several ids of one bag become one vector. `init_fn` is the config's text,
    e.g. "nn.init.uniform_,a=-0.01,b=0.01"; "" is the default. `data_type` is "FP32" or "FP16".
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    pooling: str = "SUM"
    init_fn: str = ""
    trainable: bool = True
    data_type: str = "FP32"
    constraints: Constraints | None = None


@dataclass(frozen=True)
class DenseEncoder:
    """How a number becomes a vector of `embedding_dim`: kind "autodis" or "mlp" (one linear layer).

    The last three are AutoDis': vectors in the mixture, temperature, share that skips the layer.
    """

    kind: str
    embedding_dim: int
    num_channels: int = 0
    temperature: float = 0.1
    keep_prob: float = 0.8


def table_spec(message: Message, feature_name: str, num_embeddings: int) -> TableSpec:
    """The table of one feature message (any of the kinds that have ids)."""
    text = {name: str(getattr(message, name)) for name in ("embedding_name", "init_fn")}
    constraints = None
    if message.HasField("embedding_constraints"):
        asked = message.embedding_constraints  # type: ignore[attr-defined]
        constraints = Constraints(tuple(asked.sharding_types), tuple(asked.compute_kernels))
    return TableSpec(
        name=text["embedding_name"] or f"{feature_name}_emb",
        num_embeddings=num_embeddings,
        embedding_dim=int(message.embedding_dim),  # type: ignore[attr-defined]
        pooling=str(message.pooling).upper(),  # type: ignore[attr-defined]
        init_fn=text["init_fn"],
        trainable=bool(message.trainable),  # type: ignore[attr-defined]
        data_type=str(message.data_type),  # type: ignore[attr-defined]
        constraints=constraints,
    )


def dense_encoder(message: Message) -> DenseEncoder | None:
    """The encoder that a feature of numbers asks for in `dense_emb`, or None."""
    if "dense_emb" not in message.DESCRIPTOR.oneofs_by_name:
        return None
    kind = message.WhichOneof("dense_emb")
    if kind is None:
        return None
    dim = int(message.embedding_dim)  # type: ignore[attr-defined]
    if kind == "mlp":
        return DenseEncoder("mlp", dim)
    asked = message.autodis  # type: ignore[attr-defined]
    return DenseEncoder("autodis", dim, asked.num_channels, asked.temperature, asked.keep_prob)


def merge_tables(tables: Iterable[TableSpec]) -> dict[str, TableSpec]:
    """Tables by name. Features that share a name must agree on everything but pooling; init_fn and
    sharding constraints may stand at one of them."""
    merged: dict[str, TableSpec] = {}
    problems = []
    for table in tables:
        known = merged.setdefault(table.name, table)
        known = merged[table.name] = replace(
            known,
            init_fn=known.init_fn or table.init_fn,
            constraints=known.constraints or table.constraints,
        )
        own = replace(
            table,
            pooling=known.pooling,
            init_fn=table.init_fn or known.init_fn,
            constraints=table.constraints or known.constraints,
        )
        if own != known:
            problems.append(
                Problem(
                    path=f"embedding_name {table.name!r}",
                    value=_unequal(known, own),
                    expected="features that share a table to describe the same one",
                    remedy="Make the fields equal, or give one feature another embedding_name.",
                )
            )
    if problems:
        raise ConfigError(problems)
    return merged


def _unequal(one: TableSpec, other: TableSpec) -> str:
    """ "embedding_dim 8 and 16", and so on for each field in which they differ."""
    pairs = ((f.name, getattr(one, f.name), getattr(other, f.name)) for f in fields(TableSpec))
    return ", ".join(f"{name} {_shown(a)} and {_shown(b)}" for name, a, b in pairs if a != b)


def _shown(value: object) -> str:
    if isinstance(value, Constraints):
        return "/".join((*value.sharding_types, *value.compute_kernels)) or "none"
    return str(value) if value != "" else "unset"
