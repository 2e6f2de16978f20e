# SPDX-License-Identifier: Apache-2.0
"""The semantic IDs that travel in a package; end to end in tests/integration."""

from __future__ import annotations

from pathlib import Path

from export.export_world import config_of

from tzgen.config import parse_pipeline
from tzgen.export.semantic_ids import FOLDER, carry_ids, find_ids


def test_a_generation_is_copied_and_found_where_the_package_lies(tmp_path: Path) -> None:
    (tmp_path / "sids" / "one").mkdir(parents=True)
    (tmp_path / "sids" / "one" / "manifest.json").write_text("{}")
    config = parse_pipeline(f"model_config {{ tiger {{ bundle_path: '{tmp_path}/sids/one' }} }}")
    package = tmp_path / "package"
    package.mkdir()
    carried = carry_ids(config, package)
    assert (package / FOLDER / "manifest.json").read_text() == "{}"
    assert config.model_config.tiger.bundle_path == f"{tmp_path}/sids/one", "the caller's is kept"
    assert carried.model_config.tiger.bundle_path == FOLDER
    find_ids(carried, package)
    assert carried.model_config.tiger.bundle_path == str(package / FOLDER)


def test_another_path_is_kept(tmp_path: Path) -> None:
    config = parse_pipeline("model_config { genrec { bundle_path: 'mine/two' } }")
    find_ids(config, tmp_path)
    assert config.model_config.genrec.bundle_path == "mine/two"


def test_a_model_without_ids_is_left_alone(tmp_path: Path) -> None:
    config = config_of("dlrm_hstu")
    assert carry_ids(config, tmp_path) is config and list(tmp_path.iterdir()) == []
    find_ids(config, tmp_path)
