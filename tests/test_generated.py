# SPDX-License-Identifier: Apache-2.0
"""A missing or stale compiled schema is said with the command that mends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tzgen.generated import STAMP, digest, require_schema


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A source tree with one schema file and its compiled form; returns tzgen/protos."""
    (tmp_path / "protos" / "models").mkdir(parents=True)
    (tmp_path / "protos" / "models" / "a.proto").write_text("message A {}")
    package = tmp_path / "tzgen" / "protos"
    package.mkdir(parents=True)
    (package / "pipeline_pb2.py").touch()
    (package / STAMP).write_text(digest(tmp_path / "protos"))
    return package


def test_fresh_is_accepted(checkout: Path) -> None:
    require_schema(checkout)


def test_missing_names_the_command(checkout: Path) -> None:
    (checkout / "pipeline_pb2.py").unlink()
    with pytest.raises(ImportError, match="make setup"):
        require_schema(checkout)


@pytest.mark.parametrize("change", ["edit", "add", "rename"])
def test_stale_names_the_command(checkout: Path, change: str) -> None:
    sources = checkout.parent.parent / "protos"
    if change == "edit":
        (sources / "models" / "a.proto").write_text("message B {}")
    elif change == "add":
        (sources / "b.proto").touch()
    else:
        (sources / "models" / "a.proto").rename(sources / "models" / "c.proto")
    with pytest.raises(ImportError, match=r"python setup\.py protos"):
        require_schema(checkout)


def test_an_installed_package_has_no_sources_to_compare(checkout: Path) -> None:
    sources = checkout.parent.parent / "protos"
    (sources / "models" / "a.proto").unlink()
    (sources / "models").rmdir()
    sources.rmdir()
    require_schema(checkout)
