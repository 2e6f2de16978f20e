# SPDX-License-Identifier: Apache-2.0
"""Folders are whole or absent, and on disk before their manifest."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tzgen.sid.bundle import MANIFEST, write_bundle
from tzgen.sid.folder import checksums, staged, write_manifest
from tzgen.sid.space import SidSpace
from tzgen.sid.table import make_table


class Disk:
    """What was synced, in order, by inode: files move, and keep it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._order: list[int] = []
        plain = os.fsync

        def fsync(handle: int) -> None:
            self._order.append(os.fstat(handle).st_ino)
            plain(handle)

        monkeypatch.setattr(os, "fsync", fsync)

    def first(self, path: Path) -> int:
        return self._order.index(path.stat().st_ino)

    def last(self, path: Path) -> int:
        return len(self._order) - 1 - self._order[::-1].index(path.stat().st_ino)


def test_all_of_a_bundle_is_on_disk_before_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, space = Disk(monkeypatch), SidSpace((2, 2))
    table = make_table(pa.array([3, 4]), np.array([[0, 1], [1, 1]]), space)
    path = write_bundle(tmp_path, "one", table, policy="none", capacity=1, notes={}).path
    mark = disk.first(path / MANIFEST)
    others = [p for p in (path, *path.rglob("*")) if p != path / MANIFEST]
    assert len(others) == 6  # the folder, two tables in folders, the trie
    assert all(disk.first(other) < mark for other in others)
    readable = path.stat().st_mode & 0o666
    assert {p.stat().st_mode & 0o777 for p in path.rglob("*") if p.is_file()} == {readable}
    assert disk.last(path) > mark and disk.last(tmp_path) > disk.last(path)


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "deep" / "a") as folder:
        (folder / "x").write_text("1")
        raise KeyboardInterrupt
    assert list((tmp_path / "deep").iterdir()) == []
    with staged(tmp_path / "a") as folder:
        (folder / "in").mkdir()
        (folder / "in" / "x").write_text("1")
        write_manifest(folder / "m.json", {"sums": checksums(folder)})
        assert not (tmp_path / "a").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"deep", "a"}
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"in", "m.json"}
    one = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"  # sha256sum of "1"
    assert json.loads((tmp_path / "a" / "m.json").read_text()) == {"sums": {"in/x": one}}
