# SPDX-License-Identifier: Apache-2.0
"""Run functions where Triton's kernels run: in this process on a GPU, else in an interpreter.

Triton decides when it is imported whether kernels are compiled or interpreted, so interpreted ones
get a process of their own, which lives as long as the tests of a file. What it runs must be a
function of an importable module, and be given and return what can be pickled.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

Run = Callable[..., Any]


@contextmanager
def interpreter() -> Iterator[Run]:
    """`run(function, *args, **kwargs)` in a process that interprets kernels."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_prepare) as pool:
        before = os.environ.get("TRITON_INTERPRET")
        os.environ["TRITON_INTERPRET"] = "1"
        try:
            pool.submit(_prepare).result()
        finally:
            if before is None:
                del os.environ["TRITON_INTERPRET"]
            else:
                os.environ["TRITON_INTERPRET"] = before
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()


def _prepare() -> None:
    """As in conftest.py: fresh memory is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(1)
