# SPDX-License-Identifier: Apache-2.0
"""What a run leaves switched in this process is put back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tzgen.log import LOGGER


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    handlers, propagate, level = LOGGER.handlers[:], LOGGER.propagate, LOGGER.level
    yield
    torch.utils.deterministic.fill_uninitialized_memory = True
    LOGGER.handlers[:], LOGGER.propagate = handlers, propagate
    LOGGER.setLevel(level)
