# SPDX-License-Identifier: Apache-2.0
"""Columns that are no features: labels, sample weights and the raw ids that metrics group by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from google.protobuf.message import Message
from torch import Tensor

from tzgen.data.batch import Ragged
from tzgen.features.arrow import Layout, read_bags
from tzgen.features.bags import BadValue, Bags, integers, is_text, numbers, text
from tzgen.features.base import Feature
from tzgen.features.create import newest_first, walk
from tzgen.features.hashing import hash_strings
from tzgen.features.tensors import Steps, tensor

_KEY_FIELDS = ("session_name", "grouping_key", "confidence_key")


@dataclass(frozen=True)
class LabelColumns:
    """labels and weights: column, its layout, and a feature of the sequence that it is aligned with
    ("" for none); raw_ids: name in the batch, column."""

    labels: tuple[tuple[str, Layout, str], ...]
    weights: tuple[tuple[str, Layout, str], ...]
    raw_ids: tuple[tuple[str, str], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        named = [name for name, _, _ in (*self.labels, *self.weights)]
        return (*named, *(column for _, column in self.raw_ids))


def label_columns(config: Message, features: Sequence[Feature]) -> LabelColumns:
    """From data_config, and from every loss and metric that names a key."""
    data_config = config.data_config  # type: ignore[attr-defined]
    first = {f.prefix: f for f in reversed(features) if f.prefix}
    layouts = newest_first(config)

    def aligned(name: str) -> tuple[str, Layout, str]:
        owners = [prefix for prefix in first if name.startswith(prefix)]
        if not owners:
            return name, Layout(sequence=True), ""
        owner = first[max(owners, key=len)]
        layout = owner.inputs[0].layout
        limit = owner.sequence_length
        layout = Layout(True, delimiter=layout.delimiter, limit=limit, newest_first=layouts)
        return name, layout, owner.name

    return LabelColumns(
        labels=tuple(aligned(name) for name in data_config.label_fields),
        weights=tuple(aligned(name) for name in data_config.sample_weight_fields),
        raw_ids=tuple(raw_id_columns(config, features)),
    )


def raw_id_columns(config: Message, features: Sequence[Feature]) -> list[tuple[str, str]]:
    """(name, column) of every key of a loss or metric; a feature's name means its input."""
    by_name = {feature.name: feature for feature in features}
    names: list[str] = []
    for part in (config.model_config, config.eval_config):  # type: ignore[attr-defined]
        for key in _KEY_FIELDS:
            names += [name for name in walk(part, key) if isinstance(name, str) and name]
    found = []
    for name in dict.fromkeys(names):
        columns = by_name[name].input_columns if name in by_name else ()
        found.append((name, columns[0] if columns else name))
    return found


def read_label(column: pa.Array, layout: Layout, aligned: Steps | None) -> Tensor | Ragged:
    """[B], or Ragged [L] for lists and delimited texts; int64 for integers, else float32."""
    bags, is_list = _read(column, layout, aligned)
    values = bags.values
    if is_text(values):
        whole = pc.all(pc.match_substring_regex(text(values), r"^-?[0-9]+$")).as_py()
        values = (integers(bags) if whole else numbers(bags)).values
    kind = np.int64 if values.dtype.kind in "iu" else np.float32
    return _shaped(tensor(values.astype(kind)), bags, is_list, aligned)


def read_weight(column: pa.Array, layout: Layout, aligned: Steps | None) -> Tensor | Ragged:
    """[B] or Ragged [L] float32."""
    bags, is_list = _read(column, layout, aligned)
    values = numbers(bags).values.astype(np.float32)
    return _shaped(tensor(values), bags, is_list, aligned)


def _read(column: pa.Array, layout: Layout, aligned: Steps | None) -> tuple[Bags, bool]:
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    is_list = is_list or pa.types.is_fixed_size_list(kind) or aligned is not None
    bags = read_bags(column, layout if is_list else replace(layout, sequence=False))
    lengths = bags.all_lengths()
    wrong = np.flatnonzero(lengths != 1)
    if wrong.size or (is_list and column.null_count):
        row = (
            bags.row_of_bag(int(wrong[0]))
            if wrong.size
            else int(np.asarray(column.is_null()).argmax())
        )
        raise BadValue(
            found="null, an empty value or NaN"
            if not wrong.size or lengths[wrong[0]] == 0
            else "several",
            expected="one number for every row or step",
            remedy="Drop such rows where the data is prepared, or fill them.",
            row=row,
        )
    if is_list and aligned is not None:
        _require_aligned(bags, aligned)
    return bags, is_list


def _require_aligned(bags: Bags, aligned: Steps) -> None:
    mine, theirs = bags.steps, aligned.lengths.numpy()
    assert mine is not None, "read as a sequence"
    if not np.array_equal(mine, theirs):
        row = int(np.flatnonzero(mine != theirs)[0])
        raise BadValue(
            found=f"{mine[row]} values for a sequence of {theirs[row]}",
            expected="one for every step",
            remedy="Repair the column.",
            row=row,
        )


def _shaped(values: Tensor, bags: Bags, is_list: bool, aligned: Steps | None) -> Tensor | Ragged:
    if not is_list:
        return values
    if aligned is not None:
        return Ragged(values, aligned.lengths, aligned.max_len)
    assert bags.steps is not None, "read as a sequence"
    return Ragged(values, tensor(bags.steps), int(bags.steps.max(initial=0)))


def read_raw_id(column: pa.Array) -> Tensor:
    """int64 [B]: integers as they are, texts by their 64-bit hash."""
    bags = read_bags(column, Layout(separator=""))
    if bags.lengths is not None:
        row = int(np.flatnonzero(bags.lengths != 1)[0])
        raise BadValue(
            found="no value, or several",
            expected="one id for every row",
            remedy="Fill the column, or group by another one.",
            row=row,
        )
    values: Any = bags.values
    if is_text(values):
        return torch.from_numpy(hash_strings(text(values)).view(np.int64))
    return tensor(integers(bags).values)
