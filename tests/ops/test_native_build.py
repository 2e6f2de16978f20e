# SPDX-License-Identifier: Apache-2.0
"""Building and loading the native ops: cached by digest, quiet without a compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tzgen.ops import native
from tzgen.ops.native import build as building

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
TINY = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "one.cpp").write_text(TINY)
    (folder / "two.cpp").write_text('#include "two.h"\nint second() { return TWO; }\n')
    (folder / "two.h").write_text("#define TWO 2\n")
    return folder


@needs_compiler
def test_builds_every_source_once(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lib"
    made, told = building.build(sources, folder)
    assert made is not None and made.is_file() and "built" in told
    before = made.stat().st_mtime_ns
    again, told = building.build(sources, folder)
    assert again == made and "up to date" in told and made.stat().st_mtime_ns == before
    assert sorted(path.name for path in folder.iterdir()) == ["build.log", made.name]


@needs_compiler
def test_a_changed_header_is_another_library(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lib"
    first, _ = building.build(sources, folder)
    (sources / "two.h").write_text("#define TWO 3\n")
    second, _ = building.build(sources, folder)
    assert first is not None and second is not None and first != second
    assert not first.exists(), "libraries of old sources are not kept"


def test_torch_and_processor_are_in_the_name(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = building.library_name(sources)
    monkeypatch.setattr(building, "_processor", lambda: "flags: none")
    other = building.library_name(sources)
    monkeypatch.setattr(building.importlib.metadata, "version", lambda _: "0.0")
    assert len({name, other, building.library_name(sources)}) == 3


def test_no_compiler_is_one_line_and_no_error(sources: Path, tmp_path: Path) -> None:
    made, told = building.build(sources, tmp_path / "lib", compiler="no-such-compiler")
    assert made is None and not (tmp_path / "lib").exists()
    assert "there is no C++ compiler (no-such-compiler)" in told and "\n" not in told
    assert "pure torch" in told


@needs_compiler
def test_a_failed_compile_names_its_log(sources: Path, tmp_path: Path) -> None:
    (sources / "one.cpp").write_text("int broken( {\n")
    made, told = building.build(sources, tmp_path / "lib")
    log = tmp_path / "lib" / "build.log"
    assert made is None and str(log) in told and "\n" not in told
    assert "broken" in log.read_text()
    assert [path.name for path in (tmp_path / "lib").iterdir()] == ["build.log"]


@needs_compiler
def test_a_failed_compile_keeps_the_library_that_is_there(sources: Path, tmp_path: Path) -> None:
    made, _ = building.build(sources, tmp_path / "lib")
    (sources / "one.cpp").write_text("int broken( {\n")
    assert building.build(sources, tmp_path / "lib")[0] is None
    assert made is not None and made.is_file()


@needs_compiler
def test_a_compiler_that_does_not_know_native_still_builds(sources: Path, tmp_path: Path) -> None:
    picky = tmp_path / "g++"
    picky.write_text(
        '#!/bin/sh\nfor a; do [ "$a" = -march=native ] && exit 1; done\nexec g++ "$@"\n'
    )
    picky.chmod(0o755)
    made, _ = building.build(sources, tmp_path / "lib", compiler=str(picky))
    assert made is not None and made.is_file()


def test_the_command_succeeds_and_says_one_line() -> None:
    made, _ = building.build()
    if made is None:
        pytest.skip("needs a C++ compiler")
    done = subprocess.run(
        [sys.executable, building.__file__], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"native ops: {made.name} is up to date"]


def test_a_library_of_other_sources_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tzgen_native-0123456789abcdef.so").write_bytes(b"old")
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    assert native.library_path() is None


def test_a_corrupt_library_is_refused_by_name(tmp_path: Path) -> None:
    """In a process of its own: a loaded library stays."""
    bad = tmp_path / "tzgen_native-bad.so"
    bad.write_bytes(b"not a library")
    code = f"from pathlib import Path; from tzgen.ops.native import load; load(Path({str(bad)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert f"the native library {bad} cannot be loaded" in done.stderr
    assert "python -m tzgen.ops.native.build" in done.stderr


def test_loads_once() -> None:
    if not native.available():
        pytest.skip("needs a C++ compiler")
    assert native.load() and native.load(Path("elsewhere.so"))


def test_without_a_compiler_nothing_is_said_to_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    monkeypatch.setattr(building, "FOLDER", tmp_path)
    assert building.main([]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "there is no C++ compiler" in line and "pure torch" in line
