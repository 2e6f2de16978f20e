# SPDX-License-Identifier: Apache-2.0
"""Compile the C++ ops of this folder: `python -m tzgen.ops.native.build`; `make setup` runs it.

Needs g++ (or $CXX) and the headers that torch ships; imports nothing but the standard library, so
that it is quick when there is nothing to do. The library is cached by a digest of sources, torch
version and processor, written under a temporary name and renamed. Where there is no compiler, or it
fails, one line says so and the exit status is 0: the pure-torch kernels are used.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
FOLDER = SOURCES / "lib"
PREFIX = "tzgen_native-"
REMEDY = "run `python -m tzgen.ops.native.build`"
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fopenmp", "-D_GLIBCXX_USE_CXX11_ABI=1", "-w")
TUNED = ("-march=native",)  # left out where the compiler does not know it
FALLBACK = "kernel PYTORCH uses pure torch (correct, several times slower)"


def library_name(sources: Path = SOURCES) -> str:
    """File name of the library of these sources for this torch and processor."""
    total = hashlib.sha256()
    for path in [*sorted(sources.glob("*.cpp")), *sorted(sources.glob("*.h"))]:
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    total.update(f"{importlib.metadata.version('torch')} {_processor()}".encode())
    return f"{PREFIX}{total.hexdigest()[:16]}.so"


def _processor() -> str:
    """What -march=native looks at: a library must not meet a processor that lacks its orders."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next(
        (line for line in text.splitlines() if line.startswith("flags")), platform.machine()
    )


def build(
    sources: Path = SOURCES, folder: Path = FOLDER, compiler: str | None = None
) -> tuple[Path | None, str]:
    """Compile unless it is done already: (library or None, one line that says what happened)."""
    target = folder / library_name(sources)
    if target.is_file():
        return target, f"native ops: {target.name} is up to date"
    command = compiler or _compiler()
    if shutil.which(command) is None:
        return None, f"native ops: not built, there is no C++ compiler ({command}); {FALLBACK}"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "build.log"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / target.name
        for flags in ((*FLAGS, *TUNED), FLAGS):
            if _compile(command, flags, sources, made, log):
                made.replace(target)
                for old in set(folder.glob(f"{PREFIX}*.so")) - {target}:
                    old.unlink()
                return target, f"native ops: built {target.name}"
    return None, f"native ops: not built, {command} failed, see {log}; {FALLBACK}"


def _compiler() -> str:
    return os.environ.get("CXX") or "g++"


def _compile(command: str, flags: Sequence[str], sources: Path, target: Path, log: Path) -> bool:
    """Every source by itself, all at once, then the link; what was said goes to `log`."""
    torch = Path(_torch_folder())
    includes = [torch / "include", torch / "include" / "torch" / "csrc" / "api" / "include"]
    search = [part for folder in includes for part in ("-isystem", str(folder))]
    paths = sorted(sources.glob("*.cpp"))
    objects = [target.with_name(path.stem + ".o") for path in paths]
    lines = [
        [command, *flags, *search, "-c", str(path), "-o", str(made)]
        for path, made in zip(paths, objects, strict=True)
    ]
    said = []
    for start in range(0, len(lines), max(os.cpu_count() or 1, 1)):
        some = lines[start : start + max(os.cpu_count() or 1, 1)]
        running = [
            subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for line in some
        ]
        said += [_said(line, process) for line, process in zip(some, running, strict=True)]
    link = [command, *flags, "-shared", *map(str, objects), "-o", str(target)]
    link += [f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    if all(code == 0 for code, _ in said):
        done = subprocess.run(link, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said.append((done.returncode, f"$ {' '.join(link)}\n{done.stdout}"))
    log.write_text("\n".join(text for _, text in said))
    return all(code == 0 for code, _ in said)


def _said(line: list[str], process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate()
    return process.returncode, f"$ {' '.join(line)}\n{output}"


def _torch_folder() -> str:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("native ops: torch is not installed; run `make setup`")
    return spec.submodule_search_locations[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Build, say it in one line, and succeed: the library is an accelerator, not a need."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    if not (FOLDER / library_name()).is_file() and shutil.which(_compiler()) is not None:
        print("native ops: compiling (about half a minute, once)", flush=True)
    _, told = build(folder=FOLDER)
    print(told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
