# SPDX-License-Identifier: Apache-2.0
"""One logger for the project, prefixed with the rank when there is more than one process."""

from __future__ import annotations

import functools
import logging
import os
import sys

LOGGER = logging.getLogger("tzgen")


def configure(rank: int = 0, world_size: int = 1, level: int = logging.INFO) -> None:
    """Send records to stderr; ranks other than 0 only say warnings and worse."""
    prefix = f"[rank {rank}] " if world_size > 1 else ""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{prefix}%(levelname)s %(message)s"))
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level if rank == 0 else max(level, logging.WARNING))
    LOGGER.propagate = False


def configure_alone() -> None:
    """Before a process knows its place: all say errors, only torchrun's rank 0 says more."""
    first = os.environ.get("RANK", "0") == "0"
    configure(level=logging.INFO if first else logging.ERROR)


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning the first time this exact text is said."""
    LOGGER.warning(message)
