# SPDX-License-Identifier: Apache-2.0
"""Write docs/config_reference.md from protos/: every message with its fields, types and defaults.

    python tools/gen_config_reference.py            # write it
    python tools/gen_config_reference.py --check    # exit 1 when it is not what protos/ say

Texts are the comments of the schema; the column "here" is tzgen/config/support.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from tzgen.config.support import EARLIER, MODELS, TABLE, Status, support_of

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "config_reference.md"
_INCLUDE = "tzgen/protos"
_OURS = range(1000, EARLIER)
# Files in reading order; others follow by name.
_FIRST = ("pipeline", "data", "feature", "model", "module", "tower", "loss", "metric", "train")
_HEAD = """\
# Config reference

Generated from `protos/` by `python tools/gen_config_reference.py`; do not edit.

A config is a `PipelineConfig` in protobuf text format. Field names are TorchEasyRec's wherever it
has the field; fields of ours are marked +. *replaced* means accepted with a named warning,
*refused* means an error that names the field; every other field is honoured.
Models that can be trained: {models}.
"""


def load_files() -> list[FileDescriptorProto]:
    """The schema with its comments, as protoc sees it."""
    from grpc_tools import protoc

    protos = ROOT / "protos"
    names = [
        f"{_INCLUDE}/{path.relative_to(protos).as_posix()}" for path in protos.rglob("*.proto")
    ]
    well_known = Path(protoc.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "schema.pb"
        arguments = [
            "protoc",
            f"-I{_INCLUDE}={protos}",
            f"-I{well_known}",
            f"--descriptor_set_out={target}",
            "--include_source_info",
            *sorted(names),
        ]
        if protoc.main(arguments) != 0:
            raise SystemExit("protoc failed: the lines above name the schema file and the line")
        found = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    return sorted(found.file, key=lambda file: _rank(file.name))


def render(files: Sequence[FileDescriptorProto]) -> str:
    """The whole page."""
    parts = [_HEAD.format(models=", ".join(f"`{name}`" for name in MODELS))]
    parts += ["\n".join(f"- [{_title(file)}](#{_title(file)})" for file in files)]
    for file in files:
        parts.append(f"## {_title(file)}")
        comments = _comments(file)
        for index, enum in enumerate(file.enum_type):
            parts.append(_enum(enum, comments, (5, index), enum.name))
        for index, message in enumerate(file.message_type):
            parts += _message(message, comments, (4, index), message.name)
    return "\n\n".join(parts) + "\n"


def _title(file: FileDescriptorProto) -> str:
    return file.name.removeprefix(f"{_INCLUDE}/").removesuffix(".proto").replace("/", "-")


def _rank(name: str) -> tuple[int, str]:
    stem = name.removeprefix(f"{_INCLUDE}/").removesuffix(".proto")
    return (_FIRST.index(stem) if stem in _FIRST else len(_FIRST), stem)


def _comments(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """Descriptor path -> the comment above it, as one paragraph."""
    found = {}
    for location in file.source_code_info.location:
        lines = [line.strip() for line in location.leading_comments.strip().splitlines()]
        kept = [line for line in lines if not line.startswith(("Next id:", "----"))]
        if kept:
            found[tuple(location.path)] = " ".join(kept)
    return found


def _message(
    message: DescriptorProto, comments: dict[tuple[int, ...], str], path: tuple[int, ...], name: str
) -> Iterator[str]:
    """Sections of a message and of what it declares inside; map entries are left out."""
    if message.options.map_entry:
        return
    text = comments.get(path, "")
    rows = [
        _row(message, field, comments.get((*path, 2, index), ""))
        for index, field in enumerate(message.field)
    ]
    table = "| field | type | default | meaning | here |\n|---|---|---|---|---|\n" + "\n".join(rows)
    yield f"### {name}" + (f"\n\n{_cell(text)}" if text else "")
    yield table if rows else "No fields."
    for index, enum in enumerate(message.enum_type):
        yield _enum(enum, comments, (*path, 4, index), f"{name}.{enum.name}")
    for index, nested in enumerate(message.nested_type):
        yield from _message(nested, comments, (*path, 3, index), f"{name}.{nested.name}")


def _row(message: DescriptorProto, field: FieldDescriptorProto, text: str) -> str:
    mark = " +" if field.number in _OURS else ""
    here = _here(message.name, field)
    if field.HasField("oneof_index"):
        text = f"{text} (one of `{message.oneof_decl[field.oneof_index].name}`)".strip()
    default = f"`{_default(field)}`" if field.HasField("default_value") else ""
    cells = (f"`{field.name}`{mark}", _type(message, field), default, text, here)
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _here(message: str, field: FieldDescriptorProto) -> str:
    """Status of the field, then of single values."""
    support = support_of(message, field.name, field.number)
    told = (
        [] if support.status is Status.HONOURED else [f"*{support.status.value}*: {support.text}"]
    )
    if message == "ModelConfig" and field.number >= 100 and field.name not in MODELS:
        told.append("*refused*: it cannot be trained yet.")
    prefix = f"{message}.{field.name}="
    for key, entry in TABLE.items():
        if key.startswith(prefix):
            told.append(f"`{key.removeprefix(prefix)}` *{entry.status.value}*: {entry.text}")
    return " ".join(told)


def _default(field: FieldDescriptorProto) -> str:
    if field.type == FieldDescriptorProto.TYPE_STRING:
        return '"' + field.default_value.encode("unicode_escape").decode("ascii") + '"'
    return str(field.default_value)


def _type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    short = field.type_name.split(".protos.")[-1].lstrip(".")
    entry = next((n for n in message.nested_type if short == f"{message.name}.{n.name}"), None)
    if entry is not None and entry.options.map_entry:
        return f"map<{_type(entry, entry.field[0])}, {_type(entry, entry.field[1])}>"
    if not short:
        short = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    elif not short.startswith("google."):
        short = f"[{short}](#{short.lower().replace('.', '')})"
    return f"repeated {short}" if field.label == FieldDescriptorProto.LABEL_REPEATED else short


def _enum(
    enum: descriptor_pb2.EnumDescriptorProto,
    comments: dict[tuple[int, ...], str],
    path: tuple[int, ...],
    name: str,
) -> str:
    rows = [
        f"| `{value.name}`{' +' if value.number in _OURS else ''} | "
        f"{_cell(comments.get((*path, 2, index), ''))} |"
        for index, value in enumerate(enum.value)
    ]
    text = comments.get(path, "")
    head = f"### {name}" + (f"\n\n{_cell(text)}" if text else "")
    return head + "\n\n| value | meaning |\n|---|---|\n" + "\n".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--output", type=Path, default=TARGET)
    args = parser.parse_args(argv)
    page = render(load_files())
    if args.check:
        held = args.output.read_text() if args.output.is_file() else ""
        if held == page:
            return 0
        print(
            f"{args.output} is not what protos/ say: run python tools/gen_config_reference.py",
            file=sys.stderr,
        )
        return 1
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(page)
    print(f"wrote {args.output}: {len(page.splitlines())} lines")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
