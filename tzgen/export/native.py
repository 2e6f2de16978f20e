# SPDX-License-Identifier: Apache-2.0
"""The native op library inside a package: carried where the model runs on it, loaded first."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from tzgen.build import Pipeline
from tzgen.export.package import Package
from tzgen.log import LOGGER
from tzgen.modules.stu import STULayer
from tzgen.ops import native
from tzgen.ops.hstu_attention import chosen_kernel
from tzgen.ops.native.build import library_name

FOLDER = "native"


def carry(pipeline: Pipeline, folder: Path, device: torch.device) -> str | None:
    """Copy the library into a package of `pipeline`: its path there, or None where not used."""
    layers = [m for m in pipeline.model.modules() if isinstance(m, STULayer)]
    kernels = {chosen_kernel(layer.kernel, device, torch.float32) for layer in layers}
    path = native.library_path()
    if "CPU_NATIVE" not in kernels or path is None:
        return None
    (folder / FOLDER).mkdir()
    shutil.copyfile(path, folder / FOLDER / path.name)
    return f"{FOLDER}/{path.name}"


def load_carried(package: Package) -> None:
    """Load the package's library, unless this process has one or it was built for others.

    Its name says which sources, torch and processor it fits. Where that is not so, the process
    goes on with its own library or with pure torch, which compute the same.
    """
    carried = package.manifest.get("native_library")
    if carried is None:
        return
    path = package.path / carried
    if path.name == library_name():
        native.load(path)
    else:
        LOGGER.info("%s was built for another version, torch or processor: not loaded", path)
