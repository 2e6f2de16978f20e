# SPDX-License-Identifier: Apache-2.0
"""Where an artefact came from: config, data, code, versions."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import tzgen
from tzgen import config as configs

PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "pyarrow", "numpy", "protobuf")


def provenance(config: Any, fingerprint: str) -> dict[str, Any]:
    """Entries of a manifest that say what made the artefact."""
    return {
        "tzgen": tzgen.__version__,
        "config_hash": configs.config_hash(config),
        "data_fingerprint": fingerprint,
        "seed": config.train_config.seed,
        "git_revision": _revision(),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _revision() -> str | None:
    """The commit of the source tree, marked when files differ; None for an installed package."""
    root = Path(tzgen.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
