# SPDX-License-Identifier: Apache-2.0
"""Block sizes, warps and stages of the Triton kernels: a shipped table, and tuning on request.

A first step costs the compilation of one variant a kernel. The entries come from arithmetic, not
from measurements: registers and shared memory that ptxas reports without spilling, and the L2
traffic of a forward tile (block_m FLOP a byte: 128 where rows are long). `autotune=True` times the
candidates on the device at hand, once per shape, and is never on by itself.

block_n of one kernel depends on width, dtype and device alone, not on the lengths of the batch, so
that a row's sums are taken in the same order whatever stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

MAX_WIDTH = 256
SHORT = 512  # rows up to here leave many half-empty tiles of 128


@dataclass(frozen=True)
class Config:
    """How one kernel is cut and compiled."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int]:
        """Keyword arguments of the launch."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class Shape:
    """What a config is looked up by. capability 0 is Triton's interpreter."""

    width: int  # 64, 128 or 256: the wider of attention_dim and hidden_dim, rounded up
    half: bool  # two-byte floats
    long: bool
    biased: bool
    capability: int
    precision: str  # of float32 products, as `tl.dot` names it

    @staticmethod
    def of(q: Tensor, v: Tensor, max_len: int, biased: bool) -> Shape:
        """float32 products follow torch's own switch for matrix products."""
        widest = max(q.size(2), v.size(2))
        capability = 0
        if q.is_cuda:
            major, minor = torch.cuda.get_device_capability(q.device)
            capability = 10 * major + minor
        return Shape(
            width=64 if widest <= 64 else 128 if widest <= 128 else 256,
            half=q.dtype in (torch.float16, torch.bfloat16),
            long=max_len > SHORT,
            biased=biased,
            capability=capability,
            precision="tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
        )


# (kernel, width, half) -> (config of Hopper and later, config of older devices), for long rows.
# In `forward` and `queries` a program owns block_m queries, in `keys` block_n keys.
TABLE: Mapping[tuple[str, int, bool], tuple[Config, Config]] = MappingProxyType(
    {
        ("forward", 64, True): (Config(128, 64, 4, 3), Config(128, 64, 4, 3)),
        ("forward", 128, True): (Config(128, 64, 8, 3), Config(128, 64, 8, 3)),
        ("forward", 256, True): (Config(128, 32, 8, 2), Config(64, 64, 8, 2)),
        ("forward", 64, False): (Config(64, 32, 4, 3), Config(64, 32, 4, 2)),
        ("forward", 128, False): (Config(64, 32, 8, 2), Config(64, 32, 8, 2)),
        ("forward", 256, False): (Config(32, 32, 8, 2), Config(32, 16, 8, 2)),
        ("keys", 64, True): (Config(64, 128, 8, 2), Config(64, 64, 8, 2)),
        ("keys", 128, True): (Config(32, 128, 8, 2), Config(64, 64, 8, 2)),
        ("keys", 256, True): (Config(32, 32, 8, 2), Config(32, 32, 8, 2)),
        ("keys", 64, False): (Config(32, 64, 8, 2), Config(32, 64, 8, 2)),
        ("keys", 128, False): (Config(32, 32, 8, 2), Config(32, 32, 8, 1)),
        ("keys", 256, False): (Config(16, 32, 8, 1), Config(16, 16, 8, 1)),
        ("queries", 64, True): (Config(128, 64, 8, 2), Config(64, 64, 4, 2)),
        ("queries", 128, True): (Config(128, 64, 8, 2), Config(64, 64, 8, 2)),
        ("queries", 256, True): (Config(64, 32, 8, 2), Config(64, 32, 8, 1)),
        ("queries", 64, False): (Config(64, 32, 8, 2), Config(64, 32, 8, 2)),
        ("queries", 128, False): (Config(32, 32, 8, 2), Config(32, 32, 8, 1)),
        ("queries", 256, False): (Config(32, 16, 8, 1), Config(16, 16, 8, 1)),
    }
)
# The columns and gathers of the tables cost registers: smaller tiles of two-byte floats.
BIASED: Mapping[tuple[str, int], Config] = MappingProxyType(
    {
        ("forward", 64): Config(64, 64, 8, 2),
        ("forward", 128): Config(64, 64, 8, 2),
        ("forward", 256): Config(64, 32, 8, 2),
        ("keys", 64): Config(32, 64, 8, 2),
        ("keys", 128): Config(32, 64, 8, 2),
        ("keys", 256): Config(32, 32, 8, 2),
        ("queries", 64): Config(64, 64, 8, 2),
        ("queries", 128): Config(64, 64, 8, 2),
        ("queries", 256): Config(32, 32, 8, 2),
    }
)
INTERPRETED = Config(16, 16, 1, 1)
CANDIDATES = tuple(
    Config(block_m, block_n, warps, stages)
    for block_m in (32, 64, 128)
    for block_n in (32, 64, 128)
    for warps in (4, 8)
    for stages in (2, 3, 4)
    if block_m * block_n >= 2048
)


def shipped_config(kernel: str, shape: Shape) -> Config:
    """The table's entry; tiles of 128 rows become 64 where all rows of the batch are short."""
    if shape.capability == 0:
        return INTERPRETED
    if shape.biased and shape.half:
        return BIASED[kernel, shape.width]
    entry = TABLE[kernel, shape.width, shape.half]
    config = entry[0] if shape.capability >= 90 else entry[1]
    if kernel != "keys" and not shape.long and config.block_m > 64 and shape.width < 256:
        return Config(64, config.block_n, 4, config.num_stages)
    return config


@dataclass(frozen=True)
class Tuning:
    """How the kernels run, where that is not left to the table.

    configs        kernel ("forward", "keys", "queries") -> config, for tests and measurements
    autotune       time the candidates on first use of a shape; what is found is kept in this object
    fast_silu      tanh.approx, good to 2^-11; None = for two-byte floats on a CUDA device
    listed_order   sort tiles by weight; None = where rows have many tiles
    """

    configs: Mapping[str, Config] = field(default_factory=dict)
    autotune: bool = False
    fast_silu: bool | None = None
    listed_order: bool | None = None
    found: dict[tuple[str, Shape], Config] = field(default_factory=dict, compare=False)

    def uses_fast_silu(self, shape: Shape) -> bool:
        """One approximate instruction instead of two and a division."""
        if self.fast_silu is None:
            return shape.half and shape.capability >= 75
        return self.fast_silu

    def choose(self, kernel: str, shape: Shape, run: Callable[[Config], None]) -> Config:
        """The config to launch with; `run` launches one."""
        if kernel in self.configs:
            return self.configs[kernel]
        if not self.autotune or shape.capability == 0:
            return shipped_config(kernel, shape)
        if (kernel, shape) not in self.found:
            self.found[kernel, shape] = fastest(shipped_config(kernel, shape), run)
        return self.found[kernel, shape]


SHIPPED = Tuning()


def fastest(default: Config, run: Callable[[Config], None]) -> Config:
    """The candidate with the least median time, of those that fit the device."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    best, least = default, do_bench(lambda: run(default))
    for candidate in CANDIDATES:
        try:
            time = do_bench(lambda config=candidate: run(config))
        except OutOfResources:
            continue
        if time < least:
            best, least = candidate, time
    return best
