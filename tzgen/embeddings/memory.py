# SPDX-License-Identifier: Apache-2.0
"""Whether the tables fit: bytes of weights and optimizer state against the memory there is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from tzgen.embeddings.optimizer_spec import OptimizerSpec
from tzgen.errors import UserError
from tzgen.features.tables import TableSpec

SHOWN = 12
CGROUPS = (
    # limit, usage, and the statistics that name what the kernel can drop
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


def table_bytes(table: TableSpec, optimizer: OptimizerSpec | None, *, weights: bool = True) -> int:
    """Weights, and the optimizer's state where the table is trained."""
    rows, width = table.num_embeddings, table.embedding_dim
    size = rows * width * (2 if table.data_type == "FP16" else 4) if weights else 0
    if optimizer is not None and table.trainable:
        size += 4 * rows * optimizer.state_values(width)
    return size


def available_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Free memory of a GPU; on a CPU what the kernel says is available, or less by a cgroup."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = []
    meminfo = root / "proc/meminfo"
    if meminfo.exists():
        fields = dict(
            line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line
        )
        found.append(int(fields["MemAvailable"].split()[0]) * 1024)
    for limit, usage, statistics in CGROUPS:
        paths = [root / path.lstrip("/") for path in (limit, usage, statistics)]
        if paths[0].exists() and paths[1].exists() and paths[0].read_text().strip() != "max":
            used = int(paths[1].read_text()) - _droppable(paths[2])
            found.append(int(paths[0].read_text()) - used)
    return max(0, min(found)) if found else 2**63


def check_memory(
    tables: Iterable[TableSpec],
    optimizer: OptimizerSpec | None,
    *,
    device: torch.device,
    ranks_sharing: int = 1,
    world_size: int = 1,
    weights: bool = True,
    available: int | None = None,
) -> int:
    """The bytes this device (or host) needs; raises UserError with the sum when they do not fit.

    Tables are taken as spread evenly over `world_size` ranks, of which `ranks_sharing` live on this
    device's memory (all ranks of a host on a CPU, one on a GPU). `weights` False: they are there
    already, only the optimizer's state is counted.
    """
    sizes = {table.name: table_bytes(table, optimizer, weights=weights) for table in tables}
    needed = sum(sizes.values()) * ranks_sharing // world_size
    there = available_bytes(device) if available is None else available
    if needed <= there:
        return needed
    largest = sorted(sizes.items(), key=lambda item: -item[1])
    lines = [f"  {name}: {_human(size)}" for name, size in largest[:SHOWN]]
    if len(largest) > SHOWN:
        lines.append(f"  {len(largest) - SHOWN} more: {_human(sum(s for _, s in largest[SHOWN:]))}")
    parts = ["weights"] * weights + ["optimizer state"] * (optimizer is not None)
    share = "" if world_size == ranks_sharing else f", {ranks_sharing} of {world_size} shares here"
    raise UserError(
        f"the tables need {_human(needed)} on {device} and {_human(there)} are available"
        f" ({' and '.join(parts)}{share}):\n"
        + "\n".join(lines)
        + "\nUse fewer buckets, a smaller embedding_dim, data_type FP16, rowwise_adagrad_optimizer "
        "or more ranks."
    )


def _droppable(statistics: Path) -> int:
    """Page cache that counts as used but is given back when memory is asked for."""
    if not statistics.exists():
        return 0
    fields = dict(line.split() for line in statistics.read_text().splitlines() if line.strip())
    return int(fields.get("inactive_file", fields.get("total_inactive_file", 0)))


def _human(size: int) -> str:
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.1f} {unit}" if unit != "B" else f"{size} B"
        value /= 1024
    return f"{value:.1f} TiB"
