# SPDX-License-Identifier: Apache-2.0
"""The house: who may import whom, how long files and functions may be, what none may contain."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tzgen"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if "protos" not in p.relative_to(PACKAGE).parts)

FREE = {"errors", "generated", "log", "registry"}
LEAVES = {"ops", "decoding", "modules"}  # torch only: not even FREE
ABOVE_DATA = {"config", "data", "protos"}
BELOW_BUILD = {
    "embeddings",
    "features",
    "models",
    "modules",
    "objectives",
    "ops",
    "decoding",
    "sid",
}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "generated": set(),
    "log": set(),
    "registry": set(),
    "config": {"protos"},
    "data": {"config", "protos"},
    "features": ABOVE_DATA,
    "embeddings": ABOVE_DATA | {"features", "ops", "modules"},
    "ops": set(),
    "decoding": set(),
    "modules": {"ops"},
    "sid": ABOVE_DATA | {"modules", "decoding"},
    "models": {"config", "embeddings", "modules", "ops", "decoding", "sid", "protos"},
    "objectives": ABOVE_DATA | {"models"},
    "build": ABOVE_DATA | BELOW_BUILD,
    "train": ABOVE_DATA | BELOW_BUILD | {"build"},
    "export": ABOVE_DATA | BELOW_BUILD | {"build"},
    "checking": ABOVE_DATA | BELOW_BUILD | {"build"},
    "serving": {
        "build",
        "sid",
        "embeddings",
        "data",
        "features",
        "ops",
        "modules",
        "decoding",
        "export",
    },
}
VERBS = {"train_eval", "eval", "predict", "serve", "check", "flags"}
LIGHT = {"flags"}


def layer_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def is_verb(path: Path) -> bool:
    return path.name == "__main__.py" or (path.parent == PACKAGE and path.stem in VERBS)


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Every tzgen module a file imports, lazily or not, as (line, dotted name)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "RELATIVE"
            elif node.module == "tzgen":
                for alias in node.names:
                    yield node.lineno, f"tzgen.{alias.name}"
            elif (node.module or "").startswith("tzgen."):
                yield node.lineno, str(node.module)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("tzgen."):
                    yield node.lineno, alias.name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_table(path: Path) -> None:
    mine = layer_of(path)
    if mine == "__init__":
        return
    for line, name in imported_modules(path):
        assert name != "RELATIVE", f"{path}:{line}: write the import absolutely"
        theirs = name.split(".")[1]
        if is_verb(path):
            assert theirs not in VERBS - LIGHT, f"{path}:{line}: nobody imports a verb"
            continue
        allowed = MAY_IMPORT[mine] | {mine} | (set() if mine in LEAVES else FREE)
        assert theirs in allowed, f"{path}:{line}: {mine} may not import {theirs}"


def test_objectives_see_only_the_base_of_models() -> None:
    for path in (PACKAGE / "objectives").rglob("*.py"):
        for line, name in imported_modules(path):
            assert not name.startswith("tzgen.models") or name == "tzgen.models.base", (
                f"{path}:{line}"
            )


def test_serving_layers_never_see_the_trainer() -> None:
    for folder in ("export", "serving"):
        for path in (PACKAGE / folder).rglob("*.py"):
            if path.name != "__main__.py":
                for line, name in imported_modules(path):
                    assert not name.startswith("tzgen.train"), f"{path}:{line}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_size_and_first_lines(path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines()
    assert lines[0] == "# SPDX-License-Identifier: Apache-2.0", f"{path} lacks the licence line"
    assert len(lines) <= 400, f"{path} has {len(lines)} lines: is it one concept?"
    tree = ast.parse(text)
    if path.name != "__init__.py":
        assert ast.get_docstring(tree), f"{path} does not say what it is"
    if is_verb(path) and path.stem not in LIGHT:
        assert len(lines) <= 60, f"{path}: a verb is argparse and one call"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{path}:{node.lineno}: {node.name} has {length} lines"


FORBIDDEN_CALLS = {"eval", "exec", "hasattr"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_hidden(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ExceptHandler):
            names = (
                {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
                if node.type
                else {""}
            )
            assert not names & {"Exception", "BaseException", ""}, f"{where}: name what is caught"
        if isinstance(node, ast.Global):
            raise AssertionError(f"{where}: global state")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"{where}: {node.func.id}()"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            strict = path.name == "flags.py"  # there the unknown ones are named and refused
            assert strict or node.func.attr != "parse_known_args", f"{where}: unknown flags"


def test_folders_do_not_import_each_other() -> None:
    edges: dict[str, set[str]] = {}
    for path in FILES:
        if not is_verb(path) and layer_of(path) != "__init__":
            for _, name in imported_modules(path):
                edges.setdefault(layer_of(path), set()).add(name.split(".")[1])
    for mine, theirs in edges.items():
        for other in theirs - {mine}:
            assert mine not in edges.get(other, set()), f"{mine} and {other} import each other"


def test_no_utils() -> None:
    assert not [p for p in FILES if "utils" in p.stem or p.stem in {"helpers", "common", "misc"}]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_ops_import_without_triton_and_torchrec() -> None:
    blocked = "import sys\nfor m in ('triton','torchrec','fbgemm_gpu'): sys.modules[m]=None\n"
    code = blocked + "import tzgen.ops, tzgen.ops.hstu_attention, tzgen.ops.embedding_lookup"
    result = run_python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("layer", ["config", "flags"])
def test_light_layers_do_not_load_torch(layer: str) -> None:
    result = run_python(f"import sys, tzgen.{layer}\nassert 'torch' not in sys.modules")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("verb", ["train_eval", "eval", "export", "predict", "check", "sid fit"])
def test_help_is_quick(verb: str) -> None:
    """Under half a second of processor time: nothing heavy is imported before flags are read."""
    before = os.times()
    command = [sys.executable, "-m", *f"tzgen.{verb}".split(), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    after = os.times()
    assert result.returncode == 0 and "--set" in result.stdout, result.stderr
    spent = after.children_user + after.children_system
    spent -= before.children_user + before.children_system
    assert spent < 0.5, f"python -m tzgen.{verb} --help took {spent:.2f} s"
