# SPDX-License-Identifier: Apache-2.0
"""Dry runs that several tests look at and none changes."""

from __future__ import annotations

import pytest

from checking.worlds import HSTU, TOWER, hstu_rows, tower_rows, tried
from tzgen.checking.dry_run import DryRun


@pytest.fixture(scope="package")
def hstu(tmp_path_factory: pytest.TempPathFactory) -> DryRun:
    return tried(tmp_path_factory.mktemp("hstu"), HSTU, hstu_rows())


@pytest.fixture(scope="package")
def tower(tmp_path_factory: pytest.TempPathFactory) -> DryRun:
    return tried(tmp_path_factory.mktemp("tower"), TOWER, tower_rows())
