# SPDX-License-Identifier: Apache-2.0
"""Rows that are valid for a config, from its own features and labels: for tests and dry runs.

Every column that the config reads gets what all its readers can use: ids inside their tables, words
of the vocabulary, lists of one length per sequence, rising timestamps, bitmasks of the tasks' bits.
The values mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from google.protobuf.message import Message
from numpy.typing import NDArray

from tzgen.config.features import FeatureRef, features_of, groups_of
from tzgen.config.support import GENERATORS
from tzgen.data.readers.types import input_fields
from tzgen.features.arrow import Layout
from tzgen.features.base import Feature, Input
from tzgen.features.buckets import Boundaries, IntegerBuckets
from tzgen.features.create import newest_first, walk
from tzgen.features.cross import Combination, Lookup, Match
from tzgen.features.declared import as_declared
from tzgen.features.graph import evaluation_order
from tzgen.features.labels import label_columns
from tzgen.features.mask import Mask
from tzgen.features.overlap import Overlap
from tzgen.features.raw import Formula, Numbers
from tzgen.features.sequence import base_of, equally_long
from tzgen.features.tokenize import Replacement, Tokens
from tzgen.features.vocabulary import Vocabulary

_DAY = 86_400
_EPOCH = 1_700_000_000
_KEYS = 20  # distinct keys of maps
_HASHED = 1000  # distinct ids of hashed columns
_LONGEST = 20
_CANDIDATES = 5


@dataclass
class Wanted:
    """What one column has to hold. `rank` decides between readers; `limit` is the number of ids."""

    kind: str
    rank: int
    limit: int = _HASHED
    words: tuple[str, ...] = ()
    width: int = 1
    sequence: str = ""
    feature: Feature | None = None
    layout: Layout = field(default_factory=Layout)


_RANKS = ("number", "id", "text", "mask", "bits", "time", "words", "map", "nested")


def synthesise(
    config: Message,
    features: Sequence[Feature],
    num_rows: int,
    seed: int = 0,
    *,
    empty_histories: bool = True,
) -> pa.Table:
    """A table of `num_rows` rows; histories have 0 to 20 steps, candidates 1 to 5."""
    maker = _Maker(config, features, num_rows, np.random.default_rng(seed), empty_histories)
    wanted = maker.wanted()
    columns = {name: maker.column(one) for name, one in wanted.items()}
    labels = label_columns(config, features)
    for name, _, owner in labels.labels:
        columns.setdefault(name, maker.label(name, owner))
    for name, _, owner in labels.weights:
        weights = maker.random.uniform(0.5, 1.5, maker.count(maker.aligned(owner)))
        columns.setdefault(name, maker.nested(weights.astype(np.float32), maker.aligned(owner)))
    for _, name in labels.raw_ids:
        ids = maker.random.integers(0, max(num_rows // 4, 1), num_rows)
        columns.setdefault(name, pa.array(ids))
    cost = config.data_config.sample_cost_field  # type: ignore[attr-defined]
    if cost:
        columns.setdefault(cost, pa.array(maker.random.integers(1, 100, num_rows)))
    layouts = {name: layout for name, layout, _ in (*labels.labels, *labels.weights)}
    layouts |= {name: one.layout for name, one in wanted.items()}
    for name, kind in input_fields(config.data_config).items():  # type: ignore[attr-defined]
        if kind is not None and name in columns:
            layout = layouts.get(name, Layout())
            columns[name] = as_declared(name, columns[name], kind, layout)
    return pa.table(columns)


def _steps(entry: Input) -> bool:
    return entry.source == "column" and entry.layout.sequence


@dataclass
class _Maker:
    config: Message
    features: Sequence[Feature]
    num_rows: int
    random: np.random.Generator
    empty_histories: bool
    lengths: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    candidates: str = ""

    def __post_init__(self) -> None:
        """Row lengths of every set of sequences; the set is known by its first feature."""
        self.refs: dict[str, FeatureRef] = {ref.name: ref for ref in features_of(self.config)}
        self.set_of: dict[str, str] = {}
        self.groups = {n: base_of(g.name) for g in groups_of(self.config) for n in g.feature_names}
        exact = [(g.name, n) for g in groups_of(self.config) for n in g.feature_names]
        self.kinds = {n: name for name, n in exact}
        kind = self.config.model_config.WhichOneof("model")  # type: ignore[attr-defined]
        generates = kind in GENERATORS
        self.item_groups = ("uih", "target") if generates else ()  # item ids as raw integers
        labels = label_columns(self.config, self.features)
        owners = {owner for _, _, owner in (*labels.labels, *labels.weights) if owner}
        used = [feature for feature in self.features if not feature.stub]
        columns = {f.name: {entry.name for entry in f.inputs if _steps(entry)} for f in used}
        set_of_column: dict[str, str] = {}  # a column has one length, whoever else reads it
        for names in equally_long(self.config, used, padded=True):
            read = set().union(*(columns[name] for name in names))
            first = next((set_of_column[c] for c in read if c in set_of_column), names[0])
            self.set_of |= dict.fromkeys(names, first)
            set_of_column |= dict.fromkeys(read, first)
            if first in self.lengths:
                continue
            limits = [f.sequence_length for f in self.features if f.name in names]
            longest = min([limit for limit in limits if limit] + [_LONGEST])
            candidate = bool(owners & set(names)) or any(
                self.groups.get(n, "").startswith("cand") for n in names
            )
            if candidate:
                self.candidates = self.candidates or first
                lengths = self.random.integers(1, min(longest, _CANDIDATES) + 1, self.num_rows)
            else:
                low = 0 if self.empty_histories else min(2, longest)
                lengths = self.random.integers(low, longest + 1, self.num_rows)
            self.lengths[first] = lengths

    def aligned(self, owner: str) -> str:
        """The sequence of a label: that of `owner`, else the candidates where there are some."""
        return self.set_of[owner] if owner else self.candidates

    def count(self, sequence: str) -> int:
        return int(self.lengths[sequence].sum()) if sequence else self.num_rows

    def wanted(self) -> dict[str, Wanted]:
        found: dict[str, Wanted] = {}
        for feature in evaluation_order(self.features):
            for at, one in enumerate(feature.inputs):
                if one.source == "column":
                    self._merge(found, one.name, self._want(feature, at, one))
        return found

    @staticmethod
    def _merge(found: dict[str, Wanted], name: str, new: Wanted) -> None:
        old = found.get(name)
        if old is None:
            found[name] = new
            return
        best, other = (new, old) if new.rank > old.rank else (old, new)
        best.limit = min(old.limit, new.limit)
        best.width = max(old.width, new.width)
        best.sequence = best.sequence or other.sequence
        found[name] = best

    def _want(self, feature: Feature, at: int, one: Input) -> Wanted:
        kind, limit, words = self._domain(feature, at, one)
        width = feature.value_dim if kind == "number" and at == 0 else 1
        sequence = self._sequence(feature) if one.layout.sequence else ""
        rank = _RANKS.index(kind)
        return Wanted(kind, rank, limit, words, max(width, 1), sequence, feature, one.layout)

    def _sequence(self, feature: Feature) -> str:
        """A stub of a sequence is as long as the others of its sequence."""
        if feature.name in self.set_of:
            return self.set_of[feature.name]
        mates = (f.name for f in self.features if f.sequence_name == feature.sequence_name)
        return next((self.set_of[m] for m in mates if m in self.set_of), self.candidates)

    def _domain(self, feature: Feature, at: int, one: Input) -> tuple[str, int, tuple[str, ...]]:
        """kind, number of ids and words of one input."""
        group = self.kinds.get(feature.name, "")
        if not feature.is_sparse and (group.endswith("_timestamp") or group == "query_time"):
            return "time", 0, ()
        if not feature.is_sparse and group.endswith("_action"):
            return "bits", 0, ()
        if not feature.is_sparse and group in self.item_groups:
            return "id", _HASHED, ()
        if feature.is_encoded:
            return ("id", feature.num_embeddings, ()) if feature.is_sparse else ("number", 0, ())
        if one.form in ("pairs", "nested"):
            return {"pairs": "map", "nested": "nested"}[one.form], 0, ()
        operator = feature.operator
        if isinstance(operator, Lookup | Match):
            return "id", _KEYS, ()
        if isinstance(operator, Numbers | Formula):
            return "number", 0, ()
        if isinstance(operator, Overlap | Tokens | Replacement):
            return "text", 0, ()
        if isinstance(operator, Mask) and at == 1:
            return "mask", 0, ()
        if isinstance(operator, Combination):
            return "id", _HASHED, ()
        return self._bucket_domain(feature)

    @staticmethod
    def _bucket_domain(feature: Feature) -> tuple[str, int, tuple[str, ...]]:
        """Of values that only have to become ids, or are numbers already."""
        buckets = feature.buckets
        if isinstance(buckets, Vocabulary):
            return "words", 0, tuple(word for word in buckets.words if word)
        if isinstance(buckets, Boundaries) or not feature.is_sparse:
            return "number", 0, ()
        if isinstance(buckets, IntegerBuckets):
            return "id", buckets.num_embeddings, ()
        return "id", _HASHED if buckets is not None else feature.num_embeddings, ()

    def column(self, wanted: Wanted) -> pa.Array:
        n = self.count(wanted.sequence)
        if wanted.kind in ("map", "nested"):
            return self._map(wanted)
        values = self._values(wanted, n * wanted.width)
        if wanted.width > 1:
            offsets = np.arange(n + 1, dtype=np.int32) * wanted.width
            values = pa.ListArray.from_arrays(offsets, pa.array(values))
        if wanted.layout.weighted and not wanted.sequence:
            weights = pa.array(self.random.uniform(0, 1, n).astype(np.float32))
            return pa.MapArray.from_arrays(
                np.arange(n + 1, dtype=np.int32), pa.array(values), weights
            )
        return self.nested(values, wanted.sequence)

    def nested(self, values: Any, sequence: str) -> pa.Array:
        """One list a row for sequences, else the values."""
        array = values if isinstance(values, pa.Array) else pa.array(values)
        if not sequence:
            return array
        offsets = np.concatenate([[0], np.cumsum(self.lengths[sequence])]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, array)

    def _values(self, wanted: Wanted, n: int) -> Any:
        random = self.random
        if wanted.kind == "time":
            return self._times(wanted.sequence)
        if wanted.kind == "bits":
            return self._bits(list(walk(self.config.model_config, "action_weights")), n)  # type: ignore[attr-defined]
        if wanted.kind == "id":
            return random.integers(0, max(wanted.limit, 1), n)
        if wanted.kind == "mask":
            return random.integers(0, 2, n).astype(bool)
        if wanted.kind == "words":
            return np.array(wanted.words)[random.integers(0, len(wanted.words), n)].tolist()
        if wanted.kind == "text":
            words = random.integers(0, 10, (n, 3))
            return [" ".join(f"t{word}" for word in row) for row in words]
        return random.uniform(0.1, 3.0, n).astype(np.float32)

    def _times(self, sequence: str) -> NDArray[np.int64]:
        """Rising inside a row; candidates and requests come after the history."""
        day = np.arange(self.num_rows) * _DAY + _EPOCH
        if not sequence:
            return day + 2 * _DAY
        lengths = self.lengths[sequence]
        row = np.repeat(np.arange(self.num_rows), lengths)
        gaps = np.sort(self.random.integers(0, _DAY, row.size) + row * _DAY) - row * _DAY
        if newest_first(self.config):
            gaps = _DAY - gaps
        return day[row] + gaps + (_DAY if sequence == self.candidates else 0)

    def _bits(self, bits: Sequence[int], n: int) -> NDArray[np.int64]:
        """Any subset of the bits, as their sum."""
        known = np.array(sorted(set(bits)) or [1], np.int64)
        chosen = self.random.integers(0, 2, (n, known.size)).astype(bool)
        return np.bitwise_or.reduce(np.where(chosen, known, 0), axis=1)

    def _map(self, wanted: Wanted) -> pa.Array:
        """Half of the keys for each row, with items of the reader's kind."""
        feature = wanted.feature
        assert feature is not None, "a map has a reader"
        rows = []
        for _ in range(self.num_rows):
            keys = self.random.permutation(_KEYS)[: _KEYS // 2]
            items = [self._item(feature) for _ in keys]
            pairs = [f"{key}:{item}" for key, item in zip(keys, items, strict=True)]
            nested = "|".join(f"{key}^{pair}" for key, pair in zip(keys, pairs, strict=True))
            rows.append(
                nested
                if wanted.kind == "nested"
                else feature.inputs[0].layout.separator.join(pairs)
            )
        return pa.array(rows)

    def _item(self, feature: Feature) -> str:
        buckets = feature.buckets
        if isinstance(buckets, Vocabulary):
            words = [word for word in buckets.words if word]
            return words[int(self.random.integers(0, len(words)))]
        if isinstance(buckets, IntegerBuckets):
            return str(self.random.integers(0, buckets.num_embeddings))
        separator = str(getattr(self.refs[feature.name].message, "value_separator", ","))
        count = 1 if feature.is_sparse else max(feature.value_dim, 1)
        return separator.join(f"{x:.3f}" for x in self.random.uniform(0, 3, count))

    def label(self, name: str, owner: str) -> pa.Array:
        """Bitmasks of the bits that tasks read, classes, or 0 and 1."""
        sequence = self.aligned(owner)
        n = self.count(sequence)
        bits, classes = _label_domain(self.config, name)
        values = self._bits(bits, n) if bits else self.random.integers(0, classes, n)
        return self.nested(values, sequence)


def _label_domain(config: Message, label: str) -> tuple[list[int], int]:
    """(bits, number of classes) that the tasks of this label read."""
    model: Any = config.model_config  # type: ignore[attr-defined]
    bits: list[int] = []
    classes = [2, int(model.num_class)]
    waiting: list[Any] = [model]
    while waiting:
        message = waiting.pop()
        names = message.DESCRIPTOR.fields_by_name
        if "label_name" in names and message.label_name == label:
            if "task_bitmask" in names and message.task_bitmask:
                bits.append(int(message.task_bitmask))
            if "num_class" in names:
                classes.append(int(message.num_class))
        for described, value in message.ListFields():
            is_map = described.message_type and described.message_type.GetOptions().map_entry
            if described.message_type is not None and not is_map:
                waiting += value if described.is_repeated else [value]
    return bits, max(classes)
