# SPDX-License-Identifier: Apache-2.0
"""A package is whole or absent, and says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tzgen.errors import UserError
from tzgen.export.package import open_package, staged, write_manifest

BODY = {"format": "EAGER", "outputs": ["logits"]}


def publish(path: Path, content: str = "weights", *, overwrite: bool = False) -> None:
    with staged(path, overwrite=overwrite) as folder:
        (folder / "dense.safetensors").write_text(content)
        write_manifest(folder, BODY)


def test_published_whole_and_opened(tmp_path: Path) -> None:
    publish(tmp_path / "p")
    package = open_package(tmp_path / "p")
    assert package.format == "EAGER" and package.manifest["outputs"] == ["logits"]
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_whoever_may_read_the_folder_may_read_its_files(tmp_path: Path) -> None:
    with staged(tmp_path / "p") as folder:
        (folder / "graphs").mkdir()
        for name in ("dense.safetensors", "graphs/full.safetensors"):
            (folder / name).touch(mode=0o600)
        write_manifest(folder, BODY)
    files = [file for file in (tmp_path / "p").rglob("*") if file.is_file()]
    wanted = (tmp_path / "p").stat().st_mode & 0o666
    assert len(files) == 3 and {file.stat().st_mode & 0o777 for file in files} == {wanted}


def test_a_failure_publishes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="midway"), staged(tmp_path / "p") as folder:
        (folder / "dense.safetensors").touch()
        raise RuntimeError("midway")
    assert list(tmp_path.iterdir()) == []


def test_a_package_is_replaced_only_when_asked(tmp_path: Path) -> None:
    publish(tmp_path / "p", "old")
    with pytest.raises(UserError, match="--overwrite"):
        publish(tmp_path / "p", "new")
    assert (tmp_path / "p" / "dense.safetensors").read_text() == "old"
    publish(tmp_path / "p", "new", overwrite=True)
    assert (tmp_path / "p" / "dense.safetensors").read_text() == "new"


def test_other_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "thesis.txt").touch()
    with pytest.raises(UserError, match="no package"):
        publish(tmp_path / "p", overwrite=True)
    assert (tmp_path / "p" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: (p / "manifest.json").unlink(), "no exported package"),
        (lambda p: (p / "manifest.json").write_text("{"), "damaged"),
        (lambda p: (p / "dense.safetensors").unlink(), "missing"),
        (lambda p: (p / "dense.safetensors").write_text("other"), "checksum"),
        (
            lambda p: (p / "manifest.json").write_text(json.dumps({"schema_version": 99})),
            "schema_version 99",
        ),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, said: str) -> None:
    publish(tmp_path / "p")
    damage(tmp_path / "p")
    with pytest.raises(UserError, match=said):
        open_package(tmp_path / "p")


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.*tzgen\.export"):
        open_package(tmp_path / "nowhere")
