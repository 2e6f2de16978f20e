# SPDX-License-Identifier: Apache-2.0
"""Initial weights of tables, a function of (seed, table name, row) alone.

Engines, shards and ranks get the same numbers: rows are drawn on the CPU in blocks, each block from
a generator seeded by (seed, name, block), and a shard takes its part of the blocks it overlaps.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from tzgen.config.allowlists import parse_init_fn
from tzgen.errors import UserError
from tzgen.features.tables import TableSpec

BLOCK_VALUES = 1 << 20
Draw = Callable[[Tensor, torch.Generator], object]

# what torch.nn.init assumes for arguments that the config leaves out
DEFAULTS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "uniform_": {"a": 0.0, "b": 1.0},
        "normal_": {"mean": 0.0, "std": 1.0},
        "trunc_normal_": {"mean": 0.0, "std": 1.0, "a": -2.0, "b": 2.0},
        "zeros_": {"val": 0.0},
        "ones_": {"val": 1.0},
        "xavier_uniform_": {"gain": 1.0},
        "xavier_normal_": {"gain": 1.0},
        "kaiming_uniform_": {"a": 0.0},
        "kaiming_normal_": {"a": 0.0},
    }
)


def init_problem(text: str) -> str | None:
    """Why `init_fn` cannot be used, or None when it can."""
    try:
        parse_init_fn(text) if text.strip() else None
    except UserError as error:
        return str(error)
    return None


def fill_table(out: Tensor, table: TableSpec, seed: int, row: int = 0, column: int = 0) -> None:
    """Write the initial weights of table[row : row + R, column : column + C] into out [R, C]."""
    draw = _draw(table)
    step = max(1, BLOCK_VALUES // table.embedding_dim)
    end = row + out.size(0)
    for start in range(row // step * step, end, step):
        stop = min(start + step, table.num_embeddings)
        block = torch.empty(stop - start, table.embedding_dim)
        digest = hashlib.blake2b(f"{seed}/{table.name}/{start}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") & (2**63 - 1))
        draw(block, generator)
        first, last = max(start, row), min(stop, end)
        part = block[first - start : last - start, column : column + out.size(1)]
        with torch.no_grad():
            out[first - row : last - row].copy_(part)


def _draw(table: TableSpec) -> Draw:
    if not table.init_fn.strip():  # TorchRec's default
        bound = 1.0 / math.sqrt(table.num_embeddings)
        return lambda out, g: out.uniform_(-bound, bound, generator=g)
    call = parse_init_fn(table.init_fn)
    given = {**DEFAULTS.get(call.name, {}), **call.arguments}
    if call.name == "trunc_normal_":
        return lambda out, g: nn.init.trunc_normal_(out, generator=g, **given)
    if "val" in given:
        return lambda out, g: out.fill_(given["val"])
    if call.name == "normal_":
        return lambda out, g: out.normal_(given["mean"], given["std"], generator=g)
    if call.name == "uniform_":
        return lambda out, g: out.uniform_(given["a"], given["b"], generator=g)
    return _scaled(call.name, given, table)


def _scaled(name: str, given: Mapping[str, float], table: TableSpec) -> Draw:
    """Xavier and Kaiming of the whole table [fan_out, fan_in], whatever block is drawn."""
    fan_in, fan_out = table.embedding_dim, table.num_embeddings
    if name.startswith("xavier"):
        std = given["gain"] * math.sqrt(2.0 / (fan_in + fan_out))
    else:
        std = math.sqrt(2.0 / (1 + given["a"] ** 2)) / math.sqrt(fan_in)
    if name.endswith("_normal_"):
        return lambda out, g: out.normal_(0.0, std, generator=g)
    bound = math.sqrt(3.0) * std
    return lambda out, g: out.uniform_(-bound, bound, generator=g)
