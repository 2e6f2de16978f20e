# SPDX-License-Identifier: Apache-2.0
"""The small data set, and what a verb leaves switched in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from world import World, make_world

from tzgen.log import LOGGER


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """train_eval switches off the filling of uninitialised memory, and takes the logger."""
    handlers, propagate = LOGGER.handlers[:], LOGGER.propagate
    yield
    torch.utils.deterministic.fill_uninitialized_memory = True
    LOGGER.handlers[:], LOGGER.propagate = handlers, propagate
