# SPDX-License-Identifier: Apache-2.0
"""The C++ ops `torch.ops.tzgen_native.*`: where their library lies, and loading it once.

`build.py` compiles every .cpp of this folder. A library fits one state of the sources, one version
of torch and one kind of processor; its name says which. Without it everything still works, slower.
"""

from __future__ import annotations

import functools
from pathlib import Path

from tzgen.ops.native.build import FOLDER, PREFIX, REMEDY, library_name

__all__ = ["available", "library_path", "load"]


def library_path() -> Path | None:
    """The built library that fits these sources, this torch and this processor, if there is one."""
    path = FOLDER / library_name()
    return path if path.is_file() else None


def load(path: Path | None = None) -> bool:
    """Register the ops from `path` (default: `library_path()`); False where there is no library.

    The first library of a process stays; another one is not loaded beside it.
    """
    import torch

    if any(Path(loaded).name.startswith(PREFIX) for loaded in torch.ops.loaded_libraries):
        return True
    path = library_path() if path is None else path
    if path is None:
        return False
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise RuntimeError(
            f"the native library {path} cannot be loaded ({error}): delete it and {REMEDY}"
        ) from error
    return True


@functools.cache
def available() -> bool:
    """Whether the native ops can be called; tried once in a process."""
    return load()
