# SPDX-License-Identifier: Apache-2.0
"""Is the compiled schema there, and is it that of protos/? Said with the command that mends it."""

from __future__ import annotations

import hashlib
from pathlib import Path

STAMP = "SOURCES"
REMEDY = "run `make setup`, or `python setup.py protos` where the requirements are installed"


def require_schema(package: Path) -> None:
    """Raise ImportError when `package` (tzgen/protos) is missing or older than the schema files.

    Only a source checkout has schema files beside the package; an installed wheel is never stale.
    """
    if not (package / "pipeline_pb2.py").exists():
        raise ImportError(
            f"the schema is not compiled ({package} has no pipeline_pb2.py): {REMEDY}"
        )
    sources, stamp = package.parent.parent / "protos", package / STAMP
    if stamp.exists() and sources.is_dir() and digest(sources) != stamp.read_text():
        raise ImportError(f"the compiled schema {package} is not that of {sources}: {REMEDY}")


def digest(sources: Path) -> str:
    """One hash over names and contents of all schema files."""
    total = hashlib.sha256()
    for path in sorted(sources.rglob("*.proto")):
        total.update(path.relative_to(sources).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()
