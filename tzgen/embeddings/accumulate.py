# SPDX-License-Identifier: Apache-2.0
"""Gradient accumulation with fused optimizers: one lookup, many small backward passes, one update.

A fused table is updated each time a gradient reaches it. So the groups of the whole batch are
looked up once and cut off from the tables; micro-batches run forward and backward on slices; then
the gradients of all slices go through the lookup at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tzgen.data.batch import Ragged
from tzgen.embeddings.assemble import REPEAT, Groups


def split_groups(groups: Groups, num_micro: int) -> list[Groups]:
    """The same rows in `num_micro` parts of (almost) equal size; slices share memory.

    Ragged values and tensors are cut by rows; with REPEAT ("candidate.lengths") in the groups other
    tensors are one row a candidate and are cut with the candidates of their rows. One host sync.
    """
    if num_micro < 1:
        raise ValueError(f"num_micro must be at least 1; got {num_micro}")
    bounds = row_bounds(num_rows(groups), num_micro)
    cuts = _cuts(groups, bounds)
    parts: list[Groups] = []
    for index in range(num_micro):
        rows = slice(bounds[index], bounds[index + 1])
        part: Groups = {}
        for name, value in groups.items():
            if isinstance(value, Ragged):
                starts, longest = cuts[name]
                values = value.values[starts[index] : starts[index + 1]]
                part[name] = Ragged(values, value.lengths[rows], longest[index])
            elif REPEAT in groups and name != REPEAT:
                starts, _ = cuts[REPEAT]
                part[name] = value[starts[index] : starts[index + 1]]
            else:
                part[name] = value[rows]
        parts.append(part)
    return parts


def num_rows(groups: Groups) -> int:
    """B."""
    if REPEAT in groups:
        repeat = groups[REPEAT]
        assert isinstance(repeat, Tensor), "REPEAT is a tensor of lengths"
        return repeat.size(0)
    first = next(iter(groups.values()))
    return first.lengths.size(0) if isinstance(first, Ragged) else first.size(0)


def row_bounds(rows: int, parts: int) -> list[int]:
    """parts + 1 bounds; sizes differ by one at most."""
    return [rows * index // parts for index in range(parts + 1)]


class DetachedGroups:
    """Groups cut off from the lookup that made them.

        detached = DetachedGroups(embeddings(batch), num_micro=4)
        for micro in detached.micro:
            loss(model(micro)).backward()      # dense gradients add up
        detached.backward()                    # one update of the tables

    Every part is a leaf, so that a micro-batch's backward costs its own rows only.
    """

    def __init__(self, groups: Groups, num_micro: int) -> None:
        self._whole = {name: _values(value) for name, value in groups.items()}
        self._sought = [name for name, value in self._whole.items() if value.requires_grad]
        self.micro = [
            {name: self._leaf(name, value) for name, value in part.items()}
            for part in split_groups(groups, num_micro)
        ]

    def backward(self) -> None:
        """Send the gradients collected so far through the lookup."""
        grads = self._grads()
        if grads:
            whole = [self._whole[name] for name in grads]
            torch.autograd.backward(whole, list(grads.values()))

    def attach(self, loss: Tensor) -> Tensor:
        """The scalar `loss` again, such that its backward is `self.backward()` (times the incoming
        gradient): for pipelines that call backward on what forward returned. Call it after the
        micro-batches' backward passes."""
        grads = self._grads()
        if not grads:
            return loss.detach()
        whole = [self._whole[name] for name in grads]
        attached: Tensor = _Attach.apply(loss.detach(), list(grads.values()), *whole)
        return attached

    def _leaf(self, name: str, value: Tensor | Ragged) -> Tensor | Ragged:
        if name not in self._sought:
            return value
        leaf = _values(value).detach().requires_grad_()
        return value.with_values(leaf) if isinstance(value, Ragged) else leaf

    def _grads(self) -> dict[str, Tensor]:
        """Gradients of the whole groups, for those that some micro-batch used."""
        whole = {}
        for name in self._sought:
            leaves = [_values(part[name]) for part in self.micro]
            if any(leaf.grad is not None for leaf in leaves):
                parts = [torch.zeros_like(v) if v.grad is None else v.grad for v in leaves]
                whole[name] = torch.cat(parts)
        return whole


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, grads: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.grads = grads
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Any, ...]:
        return (None, None, *(grad * incoming[0] for grad in ctx.grads))


def _values(value: Tensor | Ragged) -> Tensor:
    return value.values if isinstance(value, Ragged) else value


def _cuts(groups: Groups, bounds: Sequence[int]) -> dict[str, tuple[list[int], list[int]]]:
    """name -> (value index at each row bound, longest row of each part), for what has lengths."""
    lengths: dict[str, Tensor] = {}
    for name, value in groups.items():
        if isinstance(value, Ragged):
            lengths[name] = value.lengths
        elif name == REPEAT:
            lengths[name] = value
    if not lengths:
        return {}
    facts = []
    for counts in lengths.values():
        ends = torch.nn.functional.pad(torch.cumsum(counts, 0), (1, 0))
        at = torch.tensor(bounds, device=counts.device)
        parts = [counts[low:high] for low, high in pairwise(bounds)]
        longest = [p.max() if p.numel() else counts.new_zeros(()) for p in parts]
        facts.append(torch.cat([ends[at], torch.stack(longest)]))
    table = torch.stack(facts).tolist()
    width = len(bounds)
    return {name: (row[:width], row[width:]) for name, row in zip(lengths, table, strict=True)}
