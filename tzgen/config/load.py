# SPDX-License-Identifier: Apache-2.0
"""A pipeline.config from a file: text format, or JSON where the name ends in .json.

Whatever is wrong with the file is said at once, with line, column and the nearest known name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from google.protobuf import json_format, text_format
from google.protobuf.message import Message

from tzgen.config import json_scan, text_scan
from tzgen.config.dialect import modernise
from tzgen.config.override import apply_overrides
from tzgen.errors import ConfigError, Problem, UserError
from tzgen.log import warn_once
from tzgen.protos import pipeline_pb2


def load_pipeline(path: str | Path, overrides: Sequence[str] = ()) -> pipeline_pb2.PipelineConfig:
    """The config at `path` with `overrides` ("path.to.field=value") applied in order.

    Raises UserError when there is no such file and ConfigError, listing every mistake, when it is
    not a PipelineConfig. Fields are not checked against one another: that is `config.validate`.
    """
    source = str(path)
    text = _read(Path(path))
    config = parse_pipeline(text, source)
    apply_overrides(config, overrides)
    return config


def parse_pipeline(text: str, source: str = "config") -> pipeline_pb2.PipelineConfig:
    """`text` as a PipelineConfig; `source` names it in messages, and chooses JSON by its ending.

    Older forms of TorchEasyRec are rewritten to today's, with one warning each (`dialect`).
    """
    config = pipeline_pb2.PipelineConfig()
    if source.endswith(".json"):
        _merge_json(text, config, source)
    else:
        _merge_text(text, config, source)
    for note in modernise(config):
        warn_once(f"{source}: {note}")
    return config


def dump(config: Message) -> str:
    """The text format of what is set, in field order; `parse_pipeline(dump(c)) == c`."""
    return str(text_format.MessageToString(config, as_utf8=True))


def config_hash(config: Message) -> str:
    """16 hex digits over every field that is set, equal for texts that differ in layout only."""
    return hashlib.sha256(dump(config).encode()).hexdigest()[:16]


def _read(path: Path) -> str:
    if path.is_dir():
        inside = sorted(entry.name for entry in path.glob("*.config"))
        hint = f" It holds {', '.join(inside)}." if inside else ""
        raise UserError(f"--pipeline_config: {path} is a directory; expected a config file.{hint}")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        parent = path.parent
        if not parent.is_dir():
            raise UserError(
                f"--pipeline_config: no directory {parent} (for {path.name})."
            ) from None
        near = sorted(entry.name for entry in parent.glob("*.config"))
        hint = f"; {parent} holds {', '.join(near)}" if near else ""
        raise UserError(f"--pipeline_config: no file {path}{hint}.") from None
    except OSError as error:
        raise UserError(f"--pipeline_config: cannot read {path}: {error.strerror}.") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        column = error.start - (before.rfind(b"\n") + 1) + 1
        problem = Problem(
            f"line {line}, byte {column}",
            f"byte 0x{raw[error.start]:02x}",
            "UTF-8 text",
            "Save the file as UTF-8.",
        )
        raise ConfigError([problem], str(path)) from None


def _merge_text(text: str, config: Message, source: str) -> None:
    problems = text_scan.merge(text, config)
    if problems:
        raise ConfigError(problems, source)


def _merge_json(text: str, config: Message, source: str) -> None:
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        problem = Problem(
            f"line {error.lineno}, column {error.colno}",
            repr(text.split("\n")[error.lineno - 1].strip()),
            "JSON",
            f"The parser says: {error.msg}.",
        )
        raise ConfigError([problem], source) from None
    if not isinstance(parsed, dict):
        problem = Problem(
            "line 1, column 1", type(parsed).__name__, "a JSON object", "Wrap it in { }."
        )
        raise ConfigError([problem], source)
    problems = json_scan.scan(text, config.DESCRIPTOR)
    if not problems:
        try:
            json_format.ParseDict(parsed, config)
        except json_format.ParseError as error:
            said = f"{str(error).rstrip('.')}."
            problems = [Problem("JSON", "a value of the wrong type", "the field's type", said)]
    if problems:
        raise ConfigError(problems, source)
