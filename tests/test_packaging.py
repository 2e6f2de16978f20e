# SPDX-License-Identifier: Apache-2.0
"""Wheel and sdist build, carry the schema, and import from elsewhere."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NATIVE = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "tzgen" / "ops" / "native").iterdir()
    if path.suffix in (".cpp", ".h")
}
PROTOS = {path.relative_to(ROOT).as_posix() for path in (ROOT / "protos").rglob("*.proto")}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist and the wheel built from that sdist, as a user's index would have them."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"
    tracked = (
        subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        .stdout.decode()
        .split("\0")
    )
    for name in filter(None, tracked):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    result = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_sdist_carries_the_schema_and_nothing_generated(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert names >= PROTOS and names >= NATIVE
    assert not [name for name in names if name.endswith((".so", "build.log"))]
    assert not [name for name in names if name.endswith("_pb2.py")]


def test_wheel_imports_from_elsewhere(dist: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        wheel.extractall(tmp_path)
    compiled = {n for n in names if n.endswith("_pb2.py")}
    assert {n.removeprefix("tzgen/").replace("_pb2.py", ".proto") for n in compiled} == PROTOS
    assert set(names) >= NATIVE and not [n for n in names if n.endswith(".so")]
    assert not [n for n in names if n.startswith(("protos/", "third_party/", "tests/"))]
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "import tzgen, tzgen.config; from tzgen.protos.models import sid_model_pb2\n"
        "print(tzgen.__file__)"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(tmp_path)) or result.stdout.startswith("./"), result.stdout
