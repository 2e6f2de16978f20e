# SPDX-License-Identifier: Apache-2.0
"""Who this process is among the processes that torchrun started, and how they talk.

torchrun's RANK, WORLD_SIZE and LOCAL_RANK are read here; RANK also by tzgen.log, earlier.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tzgen import log
from tzgen.errors import UserError
from tzgen.train.quiet import quiet


@dataclass(frozen=True)
class Env:
    """One process: its rank, how many there are, and the device it computes on."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, out of place; the tensor itself when there is one rank."""
        if self.world_size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable `value`, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable `value` on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def any(self, flag: bool) -> bool:
        """True on every rank when it is true on one of them; never waits for a GPU."""
        if self.world_size == 1:
            return flag
        tensor = torch.tensor(int(flag))  # a host tensor: gloo's, also beside NCCL
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return bool(tensor.item())

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def environment() -> Iterator[Env]:
    """Join the process group that torchrun describes (one silent process without it) and leave it.

    Raises UserError when torchrun's variables contradict each other.
    """
    rank, world_size, local_rank = (
        _number(name, default)
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if not 0 <= rank < world_size:
        raise UserError(f"RANK={rank} with WORLD_SIZE={world_size}: start through torchrun")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    log.configure(rank, world_size)
    with quiet():
        _join(rank, world_size, device)
        try:
            yield Env(rank, world_size, local_rank, device)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make all random numbers of a step a function of (seed, step, rank).

    Nothing of the generator has to be stored in a checkpoint, and a resumed run draws the same
    dropout masks as the uninterrupted one.
    """
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)  # the CPU looks at 32 bits only


def _join(rank: int, world_size: int, device: torch.device) -> None:
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if world_size > 1:
        dist.init_process_group(backend, rank=rank, world_size=world_size)
    else:  # TorchRec wants a group even for one process; an in-memory store needs no port
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.lstrip("-").isdigit():
        raise UserError(
            f"{name}={text!r} in the environment of {socket.gethostname()} is no number"
        )
    return int(text)
