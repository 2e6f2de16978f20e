# SPDX-License-Identifier: Apache-2.0
"""What libraries say that no user can act on, dropped by its exact wording; nothing else is."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType

# logger -> the start of a message. TorchRec's jagged tensors ask torch.fx whether it is tracing,
# and its planner looks for torchrun's LOCAL_WORLD_SIZE though it is told the number.
MESSAGES: Mapping[str, str] = MappingProxyType(
    {
        "torch.fx._symbolic_trace": "is_fx_tracing will return true",
        "": "Could not determine LOCAL_WORLD_SIZE",  # said to the root logger
    }
)
# (category, message): collectives that TorchRec 1.8 calls by their former names; torch.export about
# its own pytrees; checkpoints read and written without a process group.
WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    (FutureWarning, r"`torch\.distributed\.\w+` is deprecated"),
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    (UserWarning, r"torch\.distributed is disabled, unavailable or uninitialized"),
)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave MESSAGES and WARNINGS unsaid inside, also in processes that are forked there."""
    with ExitStack() as undo:
        undo.enter_context(warnings.catch_warnings())
        for category, text in WARNINGS:
            warnings.filterwarnings("ignore", message=text, category=category)
        for name, start in MESSAGES.items():
            logger, refuse = logging.getLogger(name), _unless(start)
            logger.addFilter(refuse)
            undo.callback(logger.removeFilter, refuse)
        yield


def _unless(start: str) -> logging.Filter:
    class Refuse(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return not record.getMessage().startswith(start)

    return Refuse()
