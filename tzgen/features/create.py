# SPDX-License-Identifier: Apache-2.0
"""Config messages to features: the one place that knows the modes of feature generation.

FG_NONE reads the column named as the feature, already encoded. FG_BUCKETIZE reads the same column
and only makes ids. FG_NORMAL and FG_DAG evaluate everything, from the inputs that are named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as field_of
from typing import Any

import numpy as np
import pyarrow as pa
from google.protobuf.message import Message

from tzgen.config.features import FeatureRef, features_of, fg_mode_of, groups_of
from tzgen.errors import ConfigError, Problem
from tzgen.features.arrow import Layout
from tzgen.features.bags import BadValue, Bags, Flat
from tzgen.features.base import Feature, Input
from tzgen.features.buckets import Buckets, HashBuckets
from tzgen.features.operators import (
    EVERY_KEY,
    TOKENIZE,
    is_sparse,
    operator_of,
    tokenizer_size,
    value_dim,
)
from tzgen.features.tables import dense_encoder, table_spec
from tzgen.features.vocabulary import buckets_of, field

_SIDES = ("user", "item", "context", "feature", "const")
_REFUSED = ("custom_feature", "kv_dot_product", "combine_feature")
_FORMS = {"map": "pairs", "nested_map": "nested"}
_INTEGER_GROUPS = ("_timestamp", "_action")


def create_features(config: Message, *, fg: str | None = None) -> tuple[Feature, ...]:
    """Every feature of a PipelineConfig, in its order; `fg` overrides data_config.fg_mode."""
    refs = features_of(config)
    data_config = config.data_config  # type: ignore[attr-defined]
    maker = _Maker(
        mode=fg or fg_mode_of(data_config),
        separator=data_config.fg_encoded_multival_sep,
        newest_first=newest_first(config),
        integer_names=frozenset(_integer_names(config)),
        refs={ref.name: ref for ref in refs},
    )
    repeated = sorted({ref.name for ref in refs if maker.refs[ref.name] is not ref})
    problems = [
        Problem("feature_configs", f"{name!r} twice", "feature names to be unique", "Rename one.")
        for name in repeated
    ]
    if problems:
        raise ConfigError(problems)
    return tuple(maker.make(ref) for ref in refs)


def newest_first(config: Message) -> bool:
    """Whether the model says that histories run from the newest event to the oldest."""
    model = config.model_config  # type: ignore[attr-defined]
    return any(value is False for value in walk(model, "sequence_timestamp_is_ascending"))


def walk(message: Message, name: str) -> Iterator[Any]:
    """Every value that is set in a field of this name, anywhere inside a message."""
    for described, value in message.ListFields():
        if described.name == name:
            yield from value if described.is_repeated else (value,)
        elif (
            described.message_type is not None and not described.message_type.GetOptions().map_entry
        ):
            for inner in value if described.is_repeated else (value,):
                yield from walk(inner, name)


def _integer_names(config: Message) -> Iterator[str]:
    """Features of timestamp and action groups: int64 even where the column is text or float."""
    for group in groups_of(config):
        if group.name.endswith(_INTEGER_GROUPS) or group.name == "query_time":
            yield from group.feature_names


@dataclass(frozen=True)
class _Maker:
    mode: str
    separator: str
    newest_first: bool
    integer_names: frozenset[str]
    refs: Mapping[str, FeatureRef]
    hashed: dict[int, HashBuckets] = field_of(default_factory=dict)

    @property
    def generates(self) -> bool:
        return self.mode in ("FG_NORMAL", "FG_DAG")

    def make(self, ref: FeatureRef) -> Feature:
        if ref.kind in _REFUSED:
            raise _problem(ref, "", ref.kind, "a kind that tzgen has", "See docs/differences.md.")
        message = ref.message
        sparse, dim = is_sparse(ref), value_dim(ref)
        stub = bool(field(message, "stub_type", False))
        buckets = None if self.mode == "FG_NONE" else self._buckets(ref)
        encoder = None if sparse else dense_encoder(message)
        if encoder is not None and encoder.kind == "autodis" and dim > 1:
            raise _problem(ref, ".value_dim", str(dim), "1 with autodis", "Use mlp, or no encoder.")
        table = None
        if sparse and not stub:
            table = table_spec(message, ref.name, self._num_embeddings(ref, buckets))
        if (table or encoder) and not field(message, "embedding_dim"):
            raise _problem(ref, ".embedding_dim", "unset", "the width of its vectors", "Set it.")
        embedded = table or encoder
        weighted = bool(field(message, "weighted", False) and field(message, "use_weight", False))
        as_sequence = bool(field(message, "tokens_as_sequence", False))
        operator = operator_of(ref, self.generates)
        return Feature(
            name=ref.name,
            kind=ref.kind,
            path=ref.path,
            is_sequence=ref.is_sequence or as_sequence,
            is_sparse=sparse,
            value_dim=dim,
            output_dim=embedded.embedding_dim if embedded else max(dim, 1),
            table=table,
            encoder=encoder,
            sequence_name="" if ref.sequence is None else ref.sequence.sequence_name,  # type: ignore[attr-defined]
            prefix=ref.prefix,
            sequence_length=int(field(message, "sequence_length", 0))
            if as_sequence
            else ref.sequence_length,
            inputs=self._inputs(ref),
            operator=operator,
            buckets=buckets,
            default=self._default(ref, buckets, operator, sparse, dim, stub),
            stub=stub,
            weighted=weighted,
            as_integer=ref.name in self.integer_names and not sparse,
            is_encoded=self.mode == "FG_NONE",
        )

    def _buckets(self, ref: FeatureRef) -> Buckets | None:
        """Hashed features with equally many rows share one function, and what it remembers."""
        buckets = buckets_of(ref)
        if isinstance(buckets, HashBuckets):
            return self.hashed.setdefault(buckets.num_embeddings, buckets)
        return buckets

    def _num_embeddings(self, ref: FeatureRef, buckets: Buckets | None) -> int:
        if ref.kind == TOKENIZE:
            return tokenizer_size(ref)
        buckets = buckets or buckets_of(ref)
        if buckets is None:
            fields = "hash_bucket_size, num_buckets, vocab_list, vocab_dict or vocab_file"
            raise _problem(ref, "", "no number of ids", f"one of {fields}", "Set one of them.")
        return buckets.num_embeddings

    def _inputs(self, ref: FeatureRef) -> tuple[Input, ...]:
        if not self.generates:
            return (Input("column", ref.name, self._layout(ref, ref.is_sequence)),)
        named = [(name, text) for name, text in ref.inputs() if text not in EVERY_KEY]
        inputs = [self._input(ref, name, text, len(named)) for name, text in named]
        if not inputs:
            raise _problem(ref, ".expression", "unset", "its inputs as side:name", "Name them.")
        if ref.is_sequence and not any(
            i.layout.sequence or (i.source == "feature" and self.refs[i.name].is_sequence)
            for i in inputs
        ):
            remedy = "Name in sequence_fields which inputs are sequences."
            raise _problem(ref, "", "no input is a sequence", "at least one", remedy)
        return tuple(inputs)

    def _input(self, ref: FeatureRef, name: str, text: str, count: int) -> Input:
        side, colon, column = text.partition(":")
        if not colon or side not in _SIDES or not column:
            expected = f"side:name, side one of {', '.join(_SIDES)}"
            raise _problem(ref, f".{name}", repr(text), expected, "Correct it.")
        form = _FORMS.get(name, "bags")
        if side == "const":
            return Input("const", column)
        if side == "feature":
            target = ref.prefix + column if ref.prefix + column in self.refs else column
            if target not in self.refs:
                expected = f"one of the features {', '.join(sorted(self.refs))}"
                raise _problem(ref, f".{name}", repr(text), expected, "Correct the name.")
            return Input("feature", target, self._layout(ref, False), form)
        sequence = ref.is_sequence and _is_sequence_input(ref, side, column, count)
        layout = self._layout(ref, sequence)
        return Input("column", ref.prefix + column if sequence else column, layout, form)

    def _layout(self, ref: FeatureRef, sequence: bool) -> Layout:
        owner = ref.message if ref.sequence is None else ref.sequence
        own = str(getattr(ref.message, "separator", ""))  # a text to tokenize is not cut
        return Layout(
            sequence=sequence,
            separator=own if self.generates else self.separator,
            delimiter=owner.sequence_delim if sequence else ";",  # type: ignore[attr-defined]
            limit=ref.sequence_length if sequence else 0,
            newest_first=self.newest_first and sequence,
            weighted=bool(field(ref.message, "weighted", False)),
        )

    def _default(
        self,
        ref: FeatureRef,
        buckets: Buckets | None,
        operator: Any,
        sparse: bool,
        dim: int,
        stub: bool,
    ) -> Flat:
        """What an empty bag gets: ids, numbers or (for a stub) texts; empty for none."""
        encoded = self.mode == "FG_NONE"
        asked = field(ref.message, "fg_encoded_default_value") if encoded else None
        name = "fg_encoded_default_value" if asked is not None else "default_value"
        if asked is None and not (encoded and sparse):
            asked = str(getattr(ref.message, "default_value", "0"))
        separator = self.separator if encoded else str(getattr(ref.message, "separator", "\x1d"))
        parts = asked.split(separator) if asked else []
        try:
            if not sparse:
                return _numbers(parts, max(dim, 1))
            if not parts:
                return np.empty(0, np.int64)
            if buckets is not None:
                return buckets(Bags(pa.array(parts)))
            if ref.kind == TOKENIZE and operator is not None:
                return operator.encode(pa.array([asked])).values
            return pa.array(parts) if stub else np.array([int(part) for part in parts], np.int64)
        except (ValueError, BadValue) as error:
            expected = "a value of the feature, or nothing"
            raise _problem(ref, f".{name}", repr(asked), expected, "Correct it.") from error


def _numbers(parts: list[str], dim: int) -> Flat:
    found = np.array([float(part) for part in parts] or [0.0])
    if found.size not in (1, dim):
        raise ValueError(f"{found.size} numbers for value_dim {dim}")
    found = np.broadcast_to(found, (dim,)).copy()
    return found.astype(np.int64) if (found == np.floor(found)).all() else found


def _is_sequence_input(ref: FeatureRef, side: str, column: str, count: int) -> bool:
    """TorchEasyRec's rule: a lone input; of several, those named, else those of side item."""
    named = list(field(ref.message, "sequence_fields", ()))
    if named:
        return column in named
    return count == 1 or side == "item" or ref.kind == "bool_mask_feature"


def _problem(ref: FeatureRef, field: str, value: str, expected: str, remedy: str) -> ConfigError:
    return ConfigError([Problem(f"{ref.path}{field} ({ref.name!r})", value, expected, remedy)])
