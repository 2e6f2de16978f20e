# SPDX-License-Identifier: Apache-2.0
"""The base of both engines, and the local one: plain tables on one device, torch only.

T ids, B rows, L steps, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tzgen.data.batch import Batch, Ids
from tzgen.embeddings.init import fill_table
from tzgen.embeddings.memory import check_memory
from tzgen.embeddings.plan import Lookup, Plan
from tzgen.errors import UserError
from tzgen.features.tables import TableSpec
from tzgen.ops.embedding_lookup import embedding_lookup, pool

DTYPES = {"FP32": torch.float32, "FP16": torch.float16}


class EmbeddingTables(nn.Module):
    """Tables of either engine: `forward(batch)` gives {Lookup.key: float32 [B or L, D]}.

    No parameter under such a module belongs to the dense optimizer.
    """

    def __init__(self, specs: Mapping[str, TableSpec], seed: int) -> None:
        super().__init__()
        self.specs, self.seed = dict(specs), seed

    def named_weights(self) -> Iterator[tuple[str, Any]]:
        """(table, its weights [V, D]): a Tensor, or a ShardedTensor; they share memory."""
        raise NotImplementedError

    @property
    def frozen(self) -> set[str]:
        """Tables that no optimizer may touch."""
        return {name for name, spec in self.specs.items() if not spec.trainable}


class LocalTables(EmbeddingTables):
    """One parameter a table, looked up by ops.embedding_lookup with sparse gradients.

    `clip` (set by the sparse optimizer) bounds each value of the gradient that comes back from a
    lookup, at the place where fbgemm bounds it.
    """

    def __init__(self, plan: Plan, *, seed: int, device: torch.device) -> None:
        super().__init__(plan.tables, seed)
        self.lookups = tuple(plan.lookups.values())
        self.by_step = plan.by_step()
        self.clip: float | None = None
        if device.type != "meta":
            check_memory(plan.tables.values(), None, device=device)
        self.weights = nn.ParameterDict()
        for name, spec in plan.tables.items():
            size = (spec.num_embeddings, spec.embedding_dim)
            weight = torch.empty(size, dtype=DTYPES[spec.data_type], device=device)
            if device.type != "meta":
                fill_table(weight, spec, seed)
            self.weights[name] = nn.Parameter(weight, requires_grad=spec.trainable)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {lookup.key: self._look_up(lookup, batch) for lookup in self.lookups}

    def named_weights(self) -> Iterator[tuple[str, Any]]:
        for name, weight in self.weights.items():
            yield name, weight.detach()

    def load_tables(self, tables: Mapping[str, Tensor]) -> None:
        """Take over full tables [V, D] by table name, e.g. those that `gather_tables` gave.

        Tables made on the meta device cost nothing until here.
        """
        for name, weight in list(self.weights.items()):
            if name not in tables:
                raise UserError(f"no table {name!r} among {sorted(tables)}")
            if tables[name].shape != weight.shape:
                found, wanted = tuple(tables[name].shape), tuple(weight.shape)
                raise UserError(f"table {name!r} has the shape {found}; the config says {wanted}")
            if weight.is_meta:  # take the tensor itself, which may be a mapped file
                mine = tables[name].to(weight.dtype)
                self.weights[name] = nn.Parameter(mine, requires_grad=weight.requires_grad)
                continue
            with torch.no_grad():
                weight.copy_(tables[name])

    def _look_up(self, lookup: Lookup, batch: Batch) -> Tensor:
        ids, weight = ids_of(batch, lookup.feature), self.weights[lookup.table]
        if self.clip is not None and lookup.table in self.by_step:
            rows = embedding_lookup(weight, ids.values, sparse_grad=True)
            return bags_of(self._clipped(rows), ids, lookup)
        lengths = bag_lengths(ids, lookup)
        mode = "none" if lengths is None else lookup.mode if self.clip is None else "sum"
        scales = ids.weights if lookup.weighted else None
        out = embedding_lookup(weight, ids.values, lengths, scales, mode=mode, sparse_grad=True)
        return out if self.clip is None else mean_of_sums(self._clipped(out), ids, lookup)

    def _clipped(self, out: Tensor) -> Tensor:
        bound = self.clip
        if bound is not None and out.requires_grad:
            out.register_hook(lambda grad: grad.clamp(-bound, bound))
        return out


def ids_of(batch: Batch, feature: str) -> Ids:
    if feature not in batch.ids:
        raise ValueError(f"the batch has no ids of {feature!r}; it has {sorted(batch.ids)}")
    return batch.ids[feature]


def row_lengths(ids: Ids) -> Tensor:
    """int64 [B]: ids per row, all steps of a sequence together."""
    if ids.seq_lengths is None:
        return ids.lengths
    ends = torch.cumsum(ids.seq_lengths, 0)
    total = torch.nn.functional.pad(torch.cumsum(ids.lengths, 0), (1, 0))
    return total[ends] - total[ends - ids.seq_lengths]


def bag_lengths(ids: Ids, lookup: Lookup) -> Tensor | None:
    """int64 [B or L]: ids per vector of the lookup; None where every vector has exactly one id."""
    lengths = ids.lengths if lookup.level == "step" else row_lengths(ids)
    if lookup.single and lengths.size(0) == ids.values.size(0):
        return None  # none has more than one, and there are as many ids as bags
    return lengths


def bags_of(rows: Tensor, ids: Ids, lookup: Lookup) -> Tensor:
    """rows [T, D], one an id -> [B or L, D], pooled as the feature says."""
    lengths = bag_lengths(ids, lookup)
    scales = ids.weights if lookup.weighted else None
    if lengths is None:
        return rows if scales is None else rows * scales.unsqueeze(1)
    return pool(rows, lengths, scales, mode=lookup.mode)


def mean_of_sums(sums: Tensor, ids: Ids, lookup: Lookup) -> Tensor:
    """sums [B, D] of each row's ids, divided by their number where the feature wants a mean."""
    if lookup.mode != "mean" or bag_lengths(ids, lookup) is None:
        return sums
    return sums / row_lengths(ids).clamp(min=1).unsqueeze(1)


def table_modules(module: nn.Module) -> Iterator[EmbeddingTables]:
    """The tables somewhere under `module`, wrapped or not."""
    for child in module.modules():
        if isinstance(child, EmbeddingTables):
            yield child


def dense_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) of all that is no embedding table: what the dense optimizer gets.

    Names are those of the unwrapped module. Raises AssertionError if a fused parameter is left.
    """
    tables = _table_prefixes(module)
    for name, parameter in module.named_parameters():
        if bare(name).startswith(tables):
            continue
        fused: Any = getattr(parameter, "_in_backward_optimizers", None)
        assert fused is None, f"{name} has a fused optimizer but lies outside the tables"
        yield bare(name), parameter


def model_state(module: nn.Module) -> dict[str, Any]:
    """name -> Tensor or ShardedTensor, sharing memory, for checkpoints: the same names whatever the
    engine and the wrapping. Tables are "tables.<name>", the rest is named as in the bare module."""
    tables = _table_prefixes(module)
    state = {bare(name): tensor for name, tensor in module.state_dict().items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(tables)}
    for one in table_modules(module):
        state |= {f"tables.{name}": tensor for name, tensor in one.named_weights()}
    return state


def _table_prefixes(module: nn.Module) -> tuple[str, ...]:
    inside = (name for name, child in module.named_modules() if isinstance(child, EmbeddingTables))
    return tuple(f"{bare(name)}." if bare(name) else "" for name in inside)


def bare(name: str) -> str:
    """A parameter or module name without what DistributedModelParallel and DDP put before it."""
    wrappers = ("_dmp_wrapped_module", "module")
    parts = name.split(".")
    while parts and parts[0] in wrappers:
        parts = parts[1:]
    return ".".join(parts)
