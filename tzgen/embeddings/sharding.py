# SPDX-License-Identifier: Apache-2.0
"""The torchrec engine on its devices: planned, sharded, filled, with fused optimizers.

Work-arounds here are for TorchRec 1.8: data_parallel tables leave the fused optimizer (so every
table is constrained away from it), row-wise pooled tables on a CPU need a sharder that offers them,
and a table without an optimizer of its own would be trained by plain SGD.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.batched_embedding_kernel import EmbeddingFusedOptimizer
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import (
    DefaultDataParallelWrapper,
    DistributedModelParallel,
)
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    KernelConfig,
    PlannerError,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import ShardingEnv
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

from tzgen.embeddings.init import fill_table
from tzgen.embeddings.memory import available_bytes, check_memory
from tzgen.embeddings.optimizer_spec import OptimizerSpec, check_optimizer
from tzgen.embeddings.sparse_optimizer import PREFIX, STEP
from tzgen.embeddings.tables import table_modules
from tzgen.embeddings.torchrec_tables import TorchrecTables, table_of
from tzgen.errors import UserError
from tzgen.features.tables import Constraints
from tzgen.log import LOGGER, warn_once

# column splits keep one row-wise accumulator a split, so that numbers depend on the plan: if asked
DEFAULT_TYPES = ("table_wise", "row_wise", "table_row_wise")
DATA_PARALLEL = "data_parallel"
DENSE = "dense"
NO_KERNEL = "No available sharding type and compute kernel"
RESERVED = 0.15
OPTIMIZERS = {
    "sgd": EmbOptimType.EXACT_SGD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adam": EmbOptimType.ADAM,
    "partial_rowwise_adam": EmbOptimType.PARTIAL_ROWWISE_ADAM,
    "lamb": EmbOptimType.LAMB,
    "partial_rowwise_lamb": EmbOptimType.PARTIAL_ROWWISE_LAMB,
}


class _BagSharder(EmbeddingBagCollectionSharder):
    """The stock sharder offers row-wise only for GPUs, though it runs on a CPU too."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types: list[str] = super().sharding_types("cuda")
        return types


def shard(
    module: nn.Module,
    *,
    device: torch.device,
    optimizer: OptimizerSpec,
    constraints: Constraints | None = None,
    local_world_size: int | None = None,
    batch_size: int = 512,
    data_parallel: bool = True,
    find_unused_parameters: bool = False,
) -> DistributedModelParallel:
    """Place the tables of `module` on the ranks and fuse the optimizer into their backward.

    `constraints` apply to tables without their own. Without a process group one for this process
    alone is set up in memory. `data_parallel` wraps the rest in DDP where there are several ranks.
    Initial weights depend on (seed, table) only. Raises UserError when memory does not suffice, the
    device lacks the optimizer, or no plan satisfies the constraints.
    """
    check_optimizer(optimizer, engine="torchrec", device=device)
    group = ensure_process_group(device)
    world_size = group.size()
    local = local_world_size or world_size
    sharing = local if device.type == "cpu" else 1
    tables = [one for one in table_modules(module) if isinstance(one, TorchrecTables)]
    specs = {name: spec for one in tables for name, spec in one.specs.items()}
    check_memory(
        specs.values(), optimizer, device=device, ranks_sharing=sharing, world_size=world_size
    )
    for one in tables:
        _freeze(one)
    fused = fused_parameters(optimizer)
    sharders = [
        _BagSharder(fused_params=fused),
        EmbeddingCollectionSharder(fused_params=dict(fused)),
    ]
    planner = EmbeddingShardingPlanner(
        topology=_topology(device, world_size, local, sharing),
        constraints=_constraints(tables, constraints, gloo=device.type == "cpu" and world_size > 1),
        batch_size=batch_size,
        storage_reservation=FixedPercentageStorageReservation(RESERVED),
    )
    with _quiet("torchrec", "torch.fx"):
        plan = _plan(planner, module, sharders, group)
        sharded = DistributedModelParallel(
            module,
            env=ShardingEnv.from_process_group(group),
            device=device,
            plan=plan,
            sharders=sharders,
            init_data_parallel=data_parallel and world_size > 1,
            data_parallel_wrapper=DefaultDataParallelWrapper(
                static_graph=False, find_unused_parameters=find_unused_parameters
            ),
        )
    for one in tables:
        for name, weight in one.named_weights():
            for part in weight.local_shards():
                fill_table(part.tensor, specs[name], one.seed, *part.metadata.shard_offsets)
    return sharded


def ensure_process_group(device: torch.device) -> dist.ProcessGroup:
    """The default group; without one, a group of this process alone over an in-memory store."""
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    group = dist.GroupMember.WORLD
    assert group is not None, "the default process group was just made"
    return group


def fused_parameters(spec: OptimizerSpec) -> dict[str, Any]:
    """What fbgemm's table-batched embeddings are built with."""
    parameters: dict[str, Any] = {
        "optimizer": OPTIMIZERS[spec.name],
        "learning_rate": spec.lr,
        "eps": spec.eps,
        "weight_decay": spec.weight_decay,
        "weight_decay_mode": WeightDecayMode[spec.weight_decay_mode],
        "beta1": spec.beta1,
        "beta2": spec.beta2,
    }
    if spec.max_gradient is not None:
        parameters |= {"gradient_clipping": True, "max_gradient": spec.max_gradient}
    return parameters


class FusedSparseOptimizer:
    """The handle of sparse_optimizer.SparseOptimizer for a sharded module."""

    def __init__(self, module: nn.Module, spec: OptimizerSpec) -> None:
        if not isinstance(module, DistributedModelParallel):
            raise ValueError("give the module that `shard` returned")
        self.spec, self._lr = spec, spec.lr
        frozen = {name for one in table_modules(module) for name in one.frozen}
        self._fused = [
            one
            for one in _fused_optimizers(module.fused_optimizer)
            if not frozen.intersection(table_of(key) for key in one.params)
        ]
        if spec.initial_accumulator_value:
            for tensor in self.state().values():
                for shard in tensor.local_shards():
                    shard.tensor.fill_(spec.initial_accumulator_value)

    @property
    def lr(self) -> float:
        return self._lr

    def set_lr(self, lr: float) -> None:
        self._lr = lr
        for one in self._fused:
            one.param_groups[0]["lr"] = lr
            one.step()  # only hands the rate to the kernel

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for one in self._fused:
            for key, states in one.state_dict()["state"].items():
                found |= {f"{PREFIX}{name}": tensor for name, tensor in states.items()}
                if len(states) == 2:
                    found[f"{PREFIX}{table_of(key)}.{STEP}"] = one._emb_module.iter[0]
        return found

    def load(self, flat: Mapping[str, Any]) -> None:
        """State tensors share memory with `state()`; copies what does not, and sets Adam's step."""
        for name, tensor in self.state().items():
            if name in flat and flat[name] is not tensor and not name.endswith(f".{STEP}"):
                for mine, theirs in zip(
                    tensor.local_shards(), flat[name].local_shards(), strict=True
                ):
                    mine.tensor.copy_(theirs.tensor)
        for one in self._fused:
            for key in one.params:
                step = flat.get(f"{PREFIX}{table_of(key)}.{STEP}")
                if step is not None:
                    one.set_optimizer_step(int(step))


def gather_tables(module: nn.Module) -> dict[str, Tensor]:
    """table -> full weights [V, D] on the CPU, on rank 0; other ranks get {}. All ranks must call.

    For sharded tables; those of the local engine are given as they are.
    """
    full: dict[str, Tensor] = {}
    main = not dist.is_initialized() or dist.get_rank() == 0
    weights = [item for one in table_modules(module) for item in one.named_weights()]
    for name, tensor in sorted(weights, key=lambda item: item[0]):
        if not isinstance(tensor, ShardedTensor):
            full[name] = tensor.cpu().clone()
            continue
        local = tensor.local_shards()
        device = local[0].tensor.device if local else torch.device("cpu")
        out = torch.empty(tensor.size(), dtype=tensor.dtype, device=device) if main else None
        tensor.gather(0, out)
        if out is not None:
            full[name] = out.cpu()
    return full if main else {}


def _freeze(tables: TorchrecTables) -> None:
    """A rate of zero for tables that are not trained: without any optimizer they would get SGD."""
    if not tables.frozen:
        return
    # Compiles seven optimizers when it is imported.
    from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward

    for name, parameter in tables.collections.named_parameters():
        if table_of(name) in tables.frozen:
            apply_in_backward(torch.optim.SGD, [parameter], {"lr": 0.0})


def _constraints(
    tables: list[TorchrecTables], default: Constraints | None, *, gloo: bool
) -> dict[str, ParameterConstraints]:
    """Every table's own, or the default; never data_parallel."""
    found = {}
    for one in tables:
        pooled = {name for part in one.layout if part.pooled for name in part.tables}
        for name, spec in one.specs.items():
            asked = spec.constraints or default or Constraints()
            found[name] = _constraint(name, asked, by_row=not (gloo and name in pooled))
    return found


def _constraint(name: str, asked: Constraints, *, by_row: bool) -> ParameterConstraints:
    """`by_row` False: gloo cannot send back gradients of pooled row-wise tables when the ranks'
    batches differ in rows, as the last one of an epoch may."""
    types = [kind for kind in asked.sharding_types if kind != DATA_PARALLEL]
    kernels = [kernel for kernel in asked.compute_kernels if kernel != DENSE]
    fallback = list(DEFAULT_TYPES) if by_row else ["table_wise"]
    if len(types) + len(kernels) < len(asked.sharding_types) + len(asked.compute_kernels):
        warn_once(
            f"table {name!r}: data_parallel and dense would be trained by the dense optimizer; "
            f"using {', '.join(types or fallback)} with fused kernels instead"
        )
    if types == ["row_wise"] and not by_row:
        warn_once(
            f"table {name!r}: row_wise over gloo needs equally many rows on every rank; set "
            "data_config.drop_remainder, or use table_wise"
        )
    return ParameterConstraints(sharding_types=types or fallback, compute_kernels=kernels or None)


def _topology(device: torch.device, world_size: int, local: int, sharing: int) -> Any:
    host = available_bytes(torch.device("cpu")) // local
    return TopologyFactory.create_topology(
        TrainerConfig(
            world_size=world_size,
            local_world_size=local,
            hbm_cap_bytes=available_bytes(device) // sharing if device.type == "cuda" else None,
            ddr_cap_bytes=host,
        ),
        kernel_config=KernelConfig(compute_device=device.type),
    )


def _plan(
    planner: EmbeddingShardingPlanner, module: nn.Module, sharders: list[Any], group: Any
) -> Any:
    try:
        plan = planner.collective_plan(module, sharders, group)
    except RuntimeError as error:  # also what is not a PlannerError: no kernel for a table
        reason = str(error).strip().splitlines()[0]
        if not isinstance(error, PlannerError) and NO_KERNEL not in reason:
            raise
        raise UserError(
            f"TorchRec found no way to place the tables: {reason} "
            "Relax embedding_constraints, or make tables smaller."
        ) from error
    for part in plan.plan.values():
        for name, choice in part.items():
            LOGGER.debug("table %s: %s, %s", name, choice.sharding_type, choice.compute_kernel)
    return plan


def _fused_optimizers(optimizer: KeyedOptimizer) -> Iterator[EmbeddingFusedOptimizer]:
    if isinstance(optimizer, EmbeddingFusedOptimizer):
        yield optimizer
    elif isinstance(optimizer, CombinedOptimizer):
        for _, inner in optimizer.optimizers:
            yield from _fused_optimizers(inner)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """TorchRec warns about its own construction of topologies and traces."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
