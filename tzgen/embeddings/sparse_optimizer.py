# SPDX-License-Identifier: Apache-2.0
"""One handle on the optimizer of the tables, whichever engine applies it inside backward.

There is no `step()`: the rows of a batch are updated while its gradients are computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tzgen.embeddings.memory import check_memory
from tzgen.embeddings.optimizer_spec import OptimizerSpec, check_optimizer
from tzgen.embeddings.sparse_updates import state_shapes, update
from tzgen.embeddings.tables import LocalTables, table_modules
from tzgen.errors import UserError

PREFIX = "sparse."
STEP = "step"


class SparseOptimizer(Protocol):
    """`state` gives tensors (or ShardedTensors) that share memory with the optimizer, under the
    same names in both engines: "sparse.<table>.momentum1", ...; `load` takes them back."""

    @property
    def lr(self) -> float: ...
    def set_lr(self, lr: float) -> None: ...
    def state(self) -> dict[str, Any]: ...
    def load(self, flat: Mapping[str, Any]) -> None: ...


def sparse_optimizer(
    module: nn.Module, spec: OptimizerSpec, *, process_group: dist.ProcessGroup | None = None
) -> SparseOptimizer:
    """The handle for a sharded module (see sharding.shard) or for one with local tables.

    process_group: ranks that train the same local tables; their gradients are averaged, as TorchRec
    averages those of sharded tables. Raises UserError for a rule that the engine does not have.
    """
    tables = list(table_modules(module))
    local = [one for one in tables if isinstance(one, LocalTables)]
    if len(local) == len(tables):
        return LocalSparseOptimizer(local, spec, process_group=process_group)
    from tzgen.embeddings.sharding import FusedSparseOptimizer  # TorchRec may be absent

    return FusedSparseOptimizer(module, spec)


class LocalSparseOptimizer:
    """fbgemm's rules, applied by hooks to the touched rows when a table's gradient is complete."""

    def __init__(
        self,
        tables: list[LocalTables],
        spec: OptimizerSpec,
        *,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.spec, self._lr, self.group = spec, spec.lr, process_group
        self._state: dict[str, dict[str, Tensor]] = {}
        trained = [
            (name, weight, one.specs[name])
            for one in tables
            for name, weight in one.weights.items()
            if weight.requires_grad
        ]
        for name, weight, table in trained:
            check_optimizer(spec, engine="local", device=weight.device)
            if weight.dtype != torch.float32:
                raise UserError(
                    f"table {name!r} is {table.data_type}, which the local engine can look up but "
                    "not train: use data_type FP32 or the torchrec engine"
                )
        if trained:
            specs = [table for _, _, table in trained]
            check_memory(specs, spec, device=trained[0][1].device, weights=False)
        for name, weight, _ in trained:
            self._state[name] = self._initial(weight)
            weight.register_post_accumulate_grad_hook(partial(self._apply, name))
        for one in tables:
            one.clip = spec.max_gradient

    @property
    def lr(self) -> float:
        return self._lr

    def set_lr(self, lr: float) -> None:
        self._lr = lr

    def state(self) -> dict[str, Any]:
        return {
            f"{PREFIX}{table}.{key}": tensor
            for table, states in self._state.items()
            for key, tensor in states.items()
        }

    def load(self, flat: Mapping[str, Any]) -> None:
        for name, tensor in self.state().items():
            if name in flat:
                tensor.copy_(flat[name])

    def _initial(self, weight: Tensor) -> dict[str, Tensor]:
        shapes = state_shapes(self.spec, *weight.shape)
        start = self.spec.initial_accumulator_value
        states = {
            key: torch.full(shape, start, dtype=torch.float32, device=weight.device)
            for key, shape in shapes.items()
        }
        if len(states) == 2:  # Adam and LAMB correct the bias of young moments
            states[STEP] = torch.zeros((), dtype=torch.int64)
        return states

    @torch.no_grad()
    def _apply(self, name: str, weight: nn.Parameter) -> None:
        grad, weight.grad = weight.grad, None
        if grad is None:
            return
        rows, values = self._touched(grad)
        states = self._state[name]
        if STEP in states:
            states[STEP] += 1
        if not rows.numel():
            return
        tensors = [tensor for key, tensor in states.items() if key != STEP]
        step = int(states[STEP]) if STEP in states else 0
        old = tuple(tensor.index_select(0, rows) for tensor in tensors)
        picked = weight.index_select(0, rows)
        new, *moments = update(self.spec, self._lr, step, picked, values, old)
        weight.index_copy_(0, rows, new)
        for tensor, moment in zip(tensors, moments, strict=True):
            tensor.index_copy_(0, rows, moment)

    def _touched(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [R] rows, each once, and gradients [R, D]: summed over ids, mean over ranks."""
        if not grad.is_sparse:
            raise UserError("a table got a dense gradient; only lookups may use embedding tables")
        if self.group is not None and self.group.size() > 1:
            grad = _average(grad, self.group)
        grad = grad.coalesce()
        return grad.indices()[0], grad.values()


def _average(grad: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The mean over ranks of sparse gradients that touch different numbers of rows."""
    grad = grad.coalesce()
    rows, values = grad.indices()[0], grad.values()
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(group.size())]
    dist.all_gather(counts, torch.tensor([rows.numel()], device=rows.device), group=group)
    sizes = [int(count) for count in counts]
    most = max(sizes)
    pad = most - rows.numel()
    padded = (
        torch.nn.functional.pad(rows, (0, pad)),
        torch.nn.functional.pad(values, (0, 0, 0, pad)),
    )
    gathered = []
    for tensor in padded:
        parts = [torch.empty_like(tensor) for _ in sizes]
        dist.all_gather(parts, tensor.contiguous(), group=group)
        gathered.append(torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]))
    indices = gathered[0].unsqueeze(0)
    return torch.sparse_coo_tensor(indices, gathered[1] / len(sizes), grad.shape)
