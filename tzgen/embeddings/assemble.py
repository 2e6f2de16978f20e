# SPDX-License-Identifier: Apache-2.0
"""From looked-up vectors and numbers to the groups a model reads.

B rows, L steps, N candidates of all rows, W width of a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tzgen.data.batch import Batch, Ragged
from tzgen.embeddings.encoders import dense_encoder, sequence_encoder
from tzgen.embeddings.plan import CANDIDATE, QUERY, Column, Group, Plan
from tzgen.modules.sequence_encoders import SequenceEncoder, row_of_step

Groups = dict[str, Tensor | Ragged]
REPEAT = f"{CANDIDATE}.lengths"


class Assembler(nn.Module):
    """The part of EmbeddingGroup without tables; a leaf for torch.fx.

    forward(batch, {Lookup.key: [B or L, D]}) -> Groups, see EmbeddingGroup.
    """

    def __init__(
        self, plan: Plan, value_dims: Mapping[str, int], device: torch.device | None
    ) -> None:
        super().__init__()
        self.groups, self.inner, self.candidate = plan.groups, plan.inner, plan.candidate
        self.dense = nn.ModuleDict(
            {
                name: dense_encoder(spec, value_dims[name], device)
                for name, spec in plan.dense.items()
            }
        )
        self.encoders = nn.ModuleDict()
        for group in plan.groups:
            for encoder in group.encoders:
                made = sequence_encoder(encoder, plan.inner[encoder.input])
                self.encoders[encoder.name] = made if device is None else made.to(device)

    def widths(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for group in self.groups:
            own = [column.width for column in group.columns]
            encoded = [self._encoder(e.name).output_dim for e in group.encoders]
            found[group.name] = (*own, *encoded)
            if group.query:
                found[group.name + QUERY] = tuple(column.width for column in group.query)
        return found

    def forward(self, batch: Batch, vectors: Mapping[str, Tensor]) -> Groups:
        view = _View(batch, vectors, self.dense, self.candidate)
        groups: Groups = {}
        if view.rows is not None:
            groups[REPEAT] = view.repeat
        for group in self.groups:
            if not group.is_sequence:
                encoded = [
                    self._encode(view, self.inner[encoder.input], self._encoder(encoder.name))
                    for encoder in group.encoders
                ]
                groups[group.name] = view.flat(group.columns, encoded)
                continue
            groups[group.name] = view.sequence(group)
            if group.query:
                groups[group.name + QUERY] = view.flat(group.query)
        return groups

    def _encode(self, view: _View, group: Group, encoder: SequenceEncoder) -> Tensor:
        """One vector a query (candidate or row), or one a row, repeated for its candidates."""
        steps = view.sequence(group)
        values = steps.values.float()
        if not encoder.per_query:
            return view.spread(encoder(values, steps.lengths, max_len=steps.max_len))
        return encoder(
            values,
            steps.lengths,
            max_len=steps.max_len,
            query=view.flat(group.query).float(),
            query_rows=view.rows,
        )

    def _encoder(self, name: str) -> SequenceEncoder:
        module = self.encoders[name]
        assert isinstance(module, SequenceEncoder), f"{name} is no sequence encoder"
        return module


class _View:
    """One batch during one forward: columns by level, and how rows become candidates."""

    def __init__(
        self,
        batch: Batch,
        vectors: Mapping[str, Tensor],
        dense: nn.ModuleDict,
        candidate: str | None,
    ) -> None:
        self.batch, self.vectors, self.dense = batch, vectors, dense
        self.rows: Tensor | None = None  # int64 [N]: the row of each candidate
        if candidate is not None:
            self.repeat, total, _ = self._lengths(candidate)
            self.rows = row_of_step(self.repeat, total)

    def flat(self, columns: Sequence[Column], encoded: Sequence[Tensor] = ()) -> Tensor:
        """[B, W], or [N, W] where rows are repeated for their candidates; `encoded` comes last."""
        if not encoded and all(column.level == "row" for column in columns):
            return self.spread(_cat([self._values(column) for column in columns]))
        parts = [
            self._values(column)
            if column.level == "candidate"
            else self.spread(self._values(column))
            for column in columns
        ]
        return _cat([*parts, *encoded])

    def spread(self, values: Tensor) -> Tensor:
        """[B, W] -> one row a candidate; the same without candidates."""
        return values if self.rows is None else values.index_select(0, self.rows)

    def sequence(self, group: Group) -> Ragged:
        values = _cat([self._values(column) for column in group.columns])
        lengths, total, max_len = self._lengths(group.columns[0].feature)
        if total != values.size(0):
            raise ValueError(f"group {group.name!r}: {total} steps but {values.size(0)} vectors")
        return Ragged(values, lengths, max_len)

    def _values(self, column: Column) -> Tensor:
        """[B or L, width]; integers stay integers."""
        if column.lookup is not None:
            return self.vectors[column.lookup]
        numbers = self._numbers(column.feature)
        values = numbers.values if isinstance(numbers, Ragged) else numbers
        if column.feature in self.dense:
            encoded: Tensor = self.dense[column.feature](values.float())
            return encoded
        return values

    def _lengths(self, feature: str) -> tuple[Tensor, int, int]:
        """int64 [B] steps per row, their sum, and the longest, of a sequence feature."""
        ids, numbers = self.batch.ids.get(feature), self.batch.dense.get(feature)
        if ids is not None and ids.seq_lengths is not None:
            return ids.seq_lengths, ids.lengths.size(0), ids.max_len
        if isinstance(numbers, Ragged):
            return numbers.lengths, numbers.values.size(0), numbers.max_len
        raise ValueError(f"feature {feature!r} is no sequence in this batch")

    def _numbers(self, feature: str) -> Tensor | Ragged:
        if feature not in self.batch.dense:
            known = sorted(self.batch.dense)
            raise ValueError(f"the batch has no numbers of {feature!r}; it has {known}")
        return self.batch.dense[feature]


def _cat(parts: Sequence[Tensor]) -> Tensor:
    """Side by side; float32 unless all are integers."""
    if len(parts) == 1:
        return parts[0]
    if any(part.is_floating_point() for part in parts):
        parts = [part.float() for part in parts]
    return torch.cat(list(parts), dim=1)
