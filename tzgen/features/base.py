# SPDX-License-Identifier: Apache-2.0
"""One feature: where its values come from, what is done to them, what the model gets.

A feature's value is evaluated in four steps: the inputs are read, an operator makes values of
them, a bucket function makes ids of those, and empty places get the default. Which steps there are
depends on its kind and on fg_mode; create.py decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from tzgen.features.arrow import Layout
from tzgen.features.bags import Bags, Flat, fill, head, integers, is_text, numbers
from tzgen.features.buckets import Buckets
from tzgen.features.tables import DenseEncoder, TableSpec

Operator = Callable[[Sequence[Any]], Bags]


@dataclass(frozen=True)
class Input:
    """One input: source "column", "feature" or "const"; `name` is the column, feature or text.

    form is "bags", "pairs" (a map) or "nested" (a map of maps); `layout` says how a column is cut.
    """

    source: str
    name: str
    layout: Layout = field(default_factory=Layout)
    form: str = "bags"


@dataclass(frozen=True, eq=False)
class Feature:
    """A configured feature; built by `create_features`.

    name             full name: `<sequence>__<name>` in a grouped sequence
    kind             "id_feature", "raw_feature", ...
    is_sequence      each row has steps, each step is a value of this feature
    is_sparse        ids that are looked up in `table`; else numbers
    value_dim        values per row or step; 0 any number (ids only)
    output_dim       width that it contributes to a group
    table, encoder   what the embedding layer allocates; both None: the numbers themselves
    sequence_name    the grouped sequence that it belongs to, or ""
    prefix           what that sequence puts before names of features and columns, or ""
    sequence_length  steps that are kept, the newest; 0 all
    stub             only an input of other features
    weighted         its ids carry weights
    as_integer       numbers are whole (timestamps, bitmasks) and stay int64 whatever the column
    """

    name: str
    kind: str
    path: str
    is_sequence: bool
    is_sparse: bool
    value_dim: int
    output_dim: int
    table: TableSpec | None
    encoder: DenseEncoder | None
    sequence_name: str
    prefix: str
    sequence_length: int
    inputs: tuple[Input, ...]
    operator: Operator | None
    buckets: Buckets | None
    default: Flat
    stub: bool = False
    weighted: bool = False
    as_integer: bool = False
    is_encoded: bool = False

    @property
    def input_columns(self) -> tuple[str, ...]:
        return tuple(i.name for i in self.inputs if i.source == "column")

    @property
    def num_embeddings(self) -> int:
        return 0 if self.table is None else self.table.num_embeddings

    @property
    def checks_range(self) -> bool:
        """Ids are the data's own, so that they can lie outside the table."""
        return self.table is not None and (self.buckets is None or self.buckets.verbatim)

    def evaluate(self, inputs: Sequence[Any]) -> Bags:
        """Inputs in the order of `self.inputs` -> ids (int64), numbers, or texts of a stub."""
        bags = inputs[0] if self.operator is None else self.operator(inputs)
        if self.buckets is not None:
            bags = head(bags, self.value_dim) if self.value_dim and self._limits_values else bags
            bags = replace(bags, values=self.buckets(bags))
        elif self.is_sparse:
            bags = bags if self.stub and is_text(bags.values) else integers(bags)
        elif self.as_integer:
            bags = integers(_floor(numbers(bags)))
        else:
            bags = numbers(bags)
        return fill(bags, self.default)

    @property
    def _limits_values(self) -> bool:
        return self.kind not in ("raw_feature", "expr_feature", "overlap_feature")


def _floor(bags: Bags) -> Bags:
    """Times may come as floats with fractions of a second; their whole part is what is kept."""
    if bags.values.dtype.kind != "f":
        return bags
    return replace(bags, values=np.floor(bags.values))


def const(text: str, num_rows: int) -> Bags:
    """The same text in every row."""
    codes = pa.array(np.zeros(num_rows, np.int32))
    return Bags(pa.DictionaryArray.from_arrays(codes, pa.array([text])))
