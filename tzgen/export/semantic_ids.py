# SPDX-License-Identifier: Apache-2.0
"""The generation of semantic IDs that a generator was trained on, carried in its package."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

FOLDER = "semantic_ids"


def carry_ids(config: Any, folder: Path) -> Any:
    """Copy the generation of `bundle_path` into the package; a config that names the copy.

    The config itself is returned where its model reads no semantic IDs.
    """
    if _generator(config) is None:
        return config
    copied = type(config)()
    copied.CopyFrom(config)
    generator = _generator(copied)
    shutil.copytree(generator.bundle_path, folder / FOLDER)
    generator.bundle_path = FOLDER
    return copied


def find_ids(config: Any, package: Path) -> None:
    """Let a package's config name the copy where it lies now; another `bundle_path` is kept."""
    generator = _generator(config)
    if generator is not None and generator.bundle_path == FOLDER:
        generator.bundle_path = str(package / FOLDER)


def _generator(config: Any) -> Any:
    """The model's message where it has a bundle_path."""
    kind = config.model_config.WhichOneof("model")
    message = getattr(config.model_config, kind)
    return message if "bundle_path" in message.DESCRIPTOR.fields_by_name else None
