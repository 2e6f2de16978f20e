# SPDX-License-Identifier: Apache-2.0
"""One process is a group of its own; torchrun's variables are checked. Two: test_ranks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tzgen.errors import UserError
from tzgen.train.environment import Env, environment, seed_step


def test_alone_there_is_a_silent_group() -> None:
    with environment() as env:
        assert dist.is_initialized() and dist.get_world_size() == 1
        assert env == Env(0, 1, 0, env.device) and env.is_main
        tensor = torch.tensor([1.0, 2.0])
        assert env.sum(tensor) is tensor
        assert env.gather({"a": 1}) == [{"a": 1}] and env.broadcast("x") == "x"
        assert env.any(True) and not env.any(False)
        env.barrier()
    assert not dist.is_initialized()


def test_the_group_is_left_after_an_error() -> None:
    with pytest.raises(RuntimeError), environment():
        raise RuntimeError
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 with WORLD_SIZE=2"),
        ({"RANK": "-1", "WORLD_SIZE": "1"}, "RANK=-1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
    ],
)
def test_contradictions_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told), environment():
        pass
    assert not dist.is_initialized()


def test_random_numbers_are_a_function_of_seed_step_and_rank() -> None:
    def draw(*key: int) -> float:
        seed_step(*key)
        return float(torch.rand(()))

    keys = [(s, t, r) for s in (0, 1, 2**40) for t in (0, 1, 10**9) for r in (0, 1, 511)]
    first = [draw(*key) for key in keys]
    assert len(set(first)) == len(keys)
    assert first == [draw(*key) for key in keys]
