# SPDX-License-Identifier: Apache-2.0
"""Where an artefact came from."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
from train.train_world import config_of

import tzgen
from tzgen.train import manifest


def test_provenance_names_config_data_code_and_versions(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    found = json.loads(json.dumps(manifest.provenance(config, "print")))
    assert found["data_fingerprint"] == "print" and found["seed"] == 42
    assert found["tzgen"] == tzgen.__version__
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    other = config_of(tmp_path, "train_config.seed=43")
    assert manifest.provenance(other, "print")["config_hash"] != found["config_hash"]


def test_without_a_repository_there_is_no_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest.tzgen, "__file__", str(tmp_path / "tzgen" / "__init__.py"))
    assert manifest._revision() is None
    (tmp_path / ".git").mkdir()
    assert manifest._revision() is None, "git refuses such a folder"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert manifest._revision() is None, "no git at all"


def test_absent_packages_have_no_version() -> None:
    assert manifest._version("no-such-package-anywhere") is None
