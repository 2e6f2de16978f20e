# SPDX-License-Identifier: Apache-2.0
"""What the documents say is true: commands parse, configs load, code compiles, links lead on.

A fenced block says by its language how it is checked:

    shell               each line by the parser of the verb or tool that it calls; example configs
                        are loaded with the line's flags and validated
    protobuf [Message]  as PipelineConfig, validated when it has a model, or as the message named
    proto               compiled beside the schema
    python              compiled, its imports resolved
    sql, none           not looked into
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message

from tzgen import build, flags
from tzgen.config.schema import messages_of
from tzgen.config.support import MODELS as TRAINED
from tzgen.config.support import TABLE, listed_fields
from tzgen.config.tasks import TaskSpec
from tzgen.errors import ConfigError
from tzgen.models.base import MODELS
from tzgen.protos import pipeline_pb2

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "config_reference.md"  # generated; tests/tools holds it current
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        ROOT / "examples" / "README.md",
        *(page for page in (ROOT / "docs").rglob("*.md") if page != REFERENCE),
    ]
)
VERBS = ("check", "train_eval", "eval", "export", "predict", "sid")
FOLDERS = ("tzgen/", "docs/", "tools/", "examples/", "tests/", "protos/", "requirements/", ".ci/")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, its language, what follows the language, its text."""

    page: Path
    line: int
    language: str
    note: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """Every fenced block of a page."""
    opened: tuple[int, str, str] | None = None
    inside: list[str] = []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = re.fullmatch(r"```\s*(\S*)\s*(.*)", line)
        if fence is None:
            inside.append(line)
        elif opened is None:
            opened, inside = (number, fence.group(1), fence.group(2).strip()), []
        else:
            assert not fence.group(1), f"{page}:{number}: a fence opens inside a block"
            yield Block(page, *opened, "\n".join(inside) + "\n")
            opened = None
    assert opened is None, f"{page}:{opened}: the block is not closed"


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of(*languages: str) -> Any:
    """Parametrize over the blocks of these languages."""
    chosen = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", chosen, ids=lambda block: block.place)


def prose_of(page: Path) -> str:
    """A page without its fenced and indented blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def test_pages_and_languages_are_known() -> None:
    assert len(PAGES) >= 14
    known = {"shell", "protobuf", "proto", "python", "sql", ""}
    for block in BLOCKS:
        assert block.language in known, f"{block.place}: language {block.language!r}"
        assert block.language == "protobuf" or not block.note, f"{block.place}: {block.note!r}"


# ---- shell ----


def commands_of(text: str) -> Iterator[list[str]]:
    """The commands of a shell block as words, comments and line ends removed."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            cut = words.index("&&")
            yield words[:cut]
            words = words[cut + 1 :]
        if words:
            yield words


class Parsed(Exception):
    """The parser accepted the command line; nothing was run."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, list[str]], argparse.Namespace]:
    """main(argv) of a verb or tool up to its parser: the flags, or SystemExit where it refuses."""

    def run(module: Any, argv: list[str]) -> argparse.Namespace:
        found: list[argparse.Namespace] = []

        def stop(cls: type[argparse.ArgumentParser]) -> None:
            parse = cls.parse_args

            def parse_args(self: Any, args: Any = None, namespace: Any = None) -> Any:
                found.append(parse(self, args, namespace))
                raise Parsed

            patch.setattr(cls, "parse_args", parse_args)

        with monkeypatch.context() as patch, pytest.raises(Parsed):
            stop(flags.StrictParser)
            stop(argparse.ArgumentParser)
            patch.setattr(sys, "argv", [str(module.__file__), *argv])
            # verbs take None for the command line; the smallest tools take nothing
            module.main(*([None] if module.main.__code__.co_argcount else []))
        return found[0]

    return run


def module_of(verb: str) -> Any:
    folder = (ROOT / "tzgen" / verb / "__main__.py").is_file()
    return importlib.import_module(f"tzgen.{verb}" + (".__main__" if folder else ""))


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check_make(words: list[str]) -> None:
    wanted = [word for word in words[1:] if "=" not in word]
    assert wanted and set(wanted) <= targets(), f"make has {sorted(targets())}"


def check_pip(words: list[str]) -> None:
    assert words[1] == "install", words
    for word in words[2:]:
        assert word in ("-r", "-e", ".") or (ROOT / word).is_file(), f"pip install {word}"


def check_python(words: list[str], parse_only: Any) -> None:
    """`python -m tzgen.<verb> ...`, `python -m pytest FILE`, `python tools/<tool>.py ...`."""
    if words[1:2] == ["-m"] and words[2].startswith("tzgen."):
        verb = words[2].removeprefix("tzgen.")
        assert verb in VERBS, f"no verb {verb!r}"
        args = parse_only(module_of(verb), words[3:])
        if str(vars(args).get("pipeline_config") or "").startswith("examples/"):
            args.pipeline_config = str(ROOT / args.pipeline_config)
            problems = build.validate(flags.load_from_flags(args))
            assert not problems, [str(problem) for problem in problems]
    elif words[1:3] == ["-m", "venv"]:
        assert len(words) == 4
    elif words[1:3] == ["-m", "pytest"]:
        files = [word for word in words[3:] if not word.startswith("-")]
        assert files and all((ROOT / file).exists() for file in files), files
    else:
        assert words[1].startswith("tools/") and (ROOT / words[1]).is_file(), f"no {words[1]}"
        parse_only(importlib.import_module(Path(words[1]).stem), words[2:])


HARMLESS = {"cd", "git", ".", "tensorboard"}


def check_shell(text: str, parse_only: Any) -> None:
    """Every command of a shell block; AssertionError or SystemExit for one that cannot be meant."""
    for words in commands_of(text):
        while "=" in words[0]:  # NAME=value before the command
            words = words[1:]
        name = Path(words[0]).name or "."
        if name == "torchrun":
            words, name = ["python", *words[words.index("-m") :]], "python"
        if name == "make":
            check_make(words)
        elif name == "pip":
            check_pip(words)
        elif re.fullmatch(r"python(3\.\d+)?", name):
            check_python(words, parse_only)
        else:
            assert name in HARMLESS, f"teach this test about {name!r}"


@of("shell")
def test_shell_lines_parse(block: Block, parse_only: Any) -> None:
    check_shell(block.text, parse_only)


def test_a_wrong_line_is_noticed(parse_only: Any) -> None:
    for line in (
        "make quickstrat",
        "python -m tzgen.train --pipeline_config x",
        "python tools/none.py",
        "rm -rf x",
        "pip install -r requirements/tpu.txt",
        "python -m tzgen.check --pipeline_config examples/configs/mmoe_kuairand.config "
        "--set model_config.mmoe.num_expert=0",
    ):
        with pytest.raises(AssertionError):
            check_shell(line, parse_only)
    with pytest.raises(SystemExit):
        check_python(["python", "-m", "tzgen.check", "--pipeline_cfg", "x"], parse_only)


# ---- configs ----


def parse_config(block: Block) -> Message:
    """The block as the message that it names; text_format names what it does not know."""
    kind = messages_of()[block.note or "PipelineConfig"]
    return text_format.Parse(block.text, message_factory.GetMessageClass(kind)())


@of("protobuf")
def test_configs_load(block: Block) -> None:
    message = parse_config(block)
    if isinstance(message, pipeline_pb2.PipelineConfig) and message.HasField("model_config"):
        assert build.validate(message) == []
    for path, shown, support in listed_fields(message):
        raise AssertionError(f"{path} {shown} is {support.status.value}")


def test_the_whole_config_of_the_page_is_whole() -> None:
    whole = [b for b in BLOCKS if b.language == "protobuf" and "model_config {" in b.text]
    assert [block.page.name for block in whole] == ["configuration.md"]


# ---- code ----


def names_of(block: Block) -> Iterator[tuple[str, str]]:
    """(module, name or "") of every import of tzgen."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom):
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


@of("python")
def test_python_compiles_and_imports(block: Block) -> None:
    compile(block.text, block.place, "exec")
    for module, name in names_of(block):
        loaded = importlib.import_module(module)
        assert not name or name in vars(loaded), f"{block.place}: {module} has no {name}"


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> descriptor_pool.DescriptorPool:
    """The schema together with the messages of the documents' `proto` blocks."""
    folder = tmp_path_factory.mktemp("protos")
    text = "\n".join(block.text for block in BLOCKS if block.language == "proto")
    imports = "".join(
        f'import "tzgen/protos/{name}.proto";\n' for name in ("module", "tower", "model")
    )
    (folder / "docs.proto").write_text(
        f'syntax = "proto2";\npackage tzgen.protos;\n{imports}{text}'
    )
    out = folder / "set.pb"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", "--include_imports"]
    command += [f"-Itzgen/protos={ROOT / 'protos'}", f"--descriptor_set_out={out}", "docs.proto"]
    made = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert made.returncode == 0, made.stderr
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file:
        pool.Add(file)
    return pool


def test_the_model_of_add_a_model_works(
    schema: descriptor_pool.DescriptorPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message compiles, its class registers, and every parameter gets a gradient."""
    monkeypatch.setattr(MODELS, "_classes", dict(MODELS._classes))
    page = [block for block in BLOCKS if block.page.name == "add_a_model.md"]
    (code,) = (block for block in page if block.language == "python")
    namespace: dict[str, Any] = {"__name__": "trunk_multi_task"}
    exec(compile(code.text, code.place, "exec"), namespace)
    kind = schema.FindMessageTypeByName("tzgen.protos.TrunkMultiTask")
    message = message_factory.GetMessageClass(kind)()
    text_format.Parse(
        "trunk { hidden_units: 5 } task_towers { tower_name: 'a' mlp { hidden_units: 3 } }"
        "task_towers { tower_name: 'b' num_class: 3 }",
        message,
        descriptor_pool=schema,
    )
    tasks = [TaskSpec(name, "label", ()) for name in "ab"]
    model = MODELS["trunk_multi_task"](
        message, widths={"user": (4,), "item": (2, 1)}, tasks=tasks, kernel="PYTORCH"
    )
    outputs = model({"user": torch.randn(6, 4), "item": torch.randn(6, 3)})
    assert {name: tuple(x.shape) for name, x in outputs.logits.items()} == {"a": (6,), "b": (6, 3)}
    sum(x.square().sum() for x in outputs.logits.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


# ---- paths, links, names ----


def spans_of(page: Path) -> list[str]:
    """Inline code of a page, table bars unescaped."""
    return re.findall(r"`([^`\n]+)`", prose_of(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_exist(page: Path) -> None:
    example = "trunk_multi_task"  # the files that add_a_model.md tells to write
    for span in spans_of(page):
        if span.startswith(FOLDERS) and not re.search(r"[<>*\s]", span) and example not in span:
            assert (ROOT / span).exists(), f"{page.name}: {span} does not exist"
        for target in re.findall(r"^make (?:[A-Z]+=\S+ )?([a-z-]+)$", span):
            assert target in targets(), f"{page.name}: make {target}"
        for flag in re.findall(r"--([a-z_]+)", span):
            assert flag in known_flags(), f"{page.name}: no verb or tool has --{flag}"


def known_flags() -> set[str]:
    """Flags of the verbs, of the tools, and of the programs that the documents call."""
    named = {*flags.FLAGS, *(flag.alias for flag in flags.FLAGS.values() if flag.alias), "help"}
    for tool in (ROOT / "tools").glob("*.py"):
        named |= set(re.findall(r'"--([a-z_]+)"', tool.read_text()))
    return named


def heads_of(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{page.name}: link to {target}"
        assert not anchor or anchor in heads_of(there), f"{page.name}: no heading {target}"


ROOTS = "train_config|eval_config|export_config|data_config|model_config"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_field_paths_exist(page: Path) -> None:
    """`data_config.batch_size`, and `Message.field` with or without a value."""
    messages = messages_of()
    for span in spans_of(page):
        path, _, _ = span.partition(": " if ": " in span else "=")
        if re.fullmatch(rf"({ROOTS})(\.\w+)+", path):
            kind = pipeline_pb2.PipelineConfig.DESCRIPTOR
            for name in path.split("."):
                assert kind is not None and name in kind.fields_by_name, f"{page.name}: {path}"
                kind = kind.fields_by_name[name].message_type
        owner, dot, name = path.partition(".")
        if dot and owner in messages:
            assert name in messages[owner].fields_by_name, f"{page.name}: {span}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_words(page: Path) -> None:
    """No path of somebody's machine, nothing unfinished, lines that fit."""
    text = page.read_text()
    for word in ("TODO", "FIXME", "localhost"):
        assert word not in text, f"{page.name}: {word}"
    absolute = re.search(r"(?<![\w.*/~:>)\]}<$-])/[a-z][\w.-]*/", text)
    assert absolute is None, f"{page.name}: {absolute}"
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        inside ^= line.startswith("```")
        table = line.startswith("|")
        assert inside or table or len(line) <= 140, f"{page.name}:{number} is {len(line)} wide"


# ---- completeness ----


def test_readme_lists_verbs_and_models() -> None:
    text = (ROOT / "README.md").read_text()
    for verb in VERBS:
        assert f"`python -m tzgen.{verb}`" in text, verb
    rows = re.findall(r"^\| (.*?) \| .* \| (done|not yet) \|$", text, re.MULTILINE)
    states = {name: state for cell, state in rows for name in re.findall(r"`(\w+)`", cell)}
    assert {name for name, state in states.items() if state == "done"} == set(TRAINED)
    assert len(states) > len(TRAINED)
    for name in TRAINED:
        assert (ROOT / "docs" / "models" / f"{name}.md").is_file(), name


def test_differences_names_everything_that_is_not_honoured() -> None:
    text = (ROOT / "docs" / "differences.md").read_text()
    replaced, _, refused = text.partition("## Refused by name")
    for key, support in TABLE.items():
        part = replaced if support.status.value == "replaced" else refused
        assert f"`{key}`" in part, f"docs/differences.md: {key} is {support.status.value}"
    for key in re.findall(r"^\| (.*?) \|", text, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", key):
            assert name in TABLE, f"docs/differences.md: {name} is honoured now"


def test_changelog_has_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    for page in PAGES:
        for name in re.findall(r"tzgen\[(\w+)\]", page.read_text()):
            assert name in extras, f"{page.name}: extra {name}"
    (line,) = (x for x in (ROOT / "README.md").read_text().splitlines() if "Extras:" in x)
    assert set(re.findall(r"`([a-z]+)`", line)) <= extras


def test_results_tables_have_configs() -> None:
    text = (ROOT / "examples" / "README.md").read_text()
    for path in (ROOT / "examples" / "configs").glob("*.config"):
        assert f"(configs/{path.name})" in text, f"examples/README.md has no row for {path.name}"


def test_a_config_with_an_unknown_field_is_noticed() -> None:
    block = Block(ROOT / "README.md", 0, "protobuf", "", "train_config { num_stepps: 3 }")
    with pytest.raises((ConfigError, text_format.ParseError)):
        parse_config(block)
