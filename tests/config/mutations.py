# SPDX-License-Identifier: Apache-2.0
"""Every field of a config deleted, renamed and retyped: each must be said, none may crash.

`check_mutations(text)` is for any config text, the example configs included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tzgen.config import dump, parse_pipeline, validate
from tzgen.errors import ConfigError, Problem, UserError
from tzgen.protos.pipeline_pb2 import PipelineConfig


@dataclass(frozen=True)
class Mutation:
    """A broken text, the line that was touched, and what was done to it."""

    kind: str  # deleted | renamed | retyped
    line: int
    before: str
    text: str
    field: str  # "feature_configs.id_feature.embedding_name"


def mutations(text: str) -> Iterator[Mutation]:
    """All single-field mutations of a config, made on its canonical text."""
    lines = dump(parse_pipeline(text)).splitlines()
    above: list[str] = []
    for index, line in enumerate(lines):
        body = line.strip()
        if body == "}":
            above.pop()
            continue
        name = body.split(":", 1)[0].removesuffix(" {")
        field = ".".join([*above, name])
        end = _block_end(lines, index)
        without = _join([*lines[:index], *lines[end:]])
        yield Mutation("deleted", index + 1, body, without, field)
        yield Mutation("renamed", index + 1, body, _with(lines, index, _rename(line)), field)
        if body.endswith("{"):
            above.append(name)
            retyped = _join([*lines[:index], f"{name}: 3", *lines[end:]])
        else:
            quoted = body.endswith(('"', "'"))  # only strings are
            wrong = "5" if quoted else '"no such value"'
            retyped = _with(lines, index, f"{name}: {wrong}")
        yield Mutation("retyped", index + 1, body, retyped, field)


def problems_of(text: str) -> list[Problem]:
    """What loading and validating say; any other exception is a bug."""
    try:
        return validate(parse_pipeline(text))
    except ConfigError as error:
        return list(error.problems)


def check_mutations(text: str, run: Callable[[PipelineConfig], None] | None = None) -> int:
    """Hold every mutation of `text` to the rules and return how many there were.

    Renamed and retyped fields are refused at their line. A deleted field gives problems that are
    complete (path, value, expected, remedy), or none where the field has a default: what is left
    must then `run`, or end in a UserError that says why not. A scalar of twenty features alike is
    run without once, not twenty times.
    """
    count = 0
    met: set[str] = set()
    for mutation in mutations(text):
        count += 1
        said = problems_of(mutation.text)
        told = f"{mutation.kind} line {mutation.line} ({mutation.before}): {[str(p) for p in said]}"
        for problem in said:
            assert all((problem.path, problem.value, problem.expected, problem.remedy)), told
        if mutation.kind != "deleted":
            assert any(p.path.startswith(f"line {mutation.line}, ") for p in said), told
        elif not said and run is not None and mutation.field not in met:
            if not mutation.before.endswith("{"):
                met.add(mutation.field)
            _runs(mutation, run)
    return count


def _runs(mutation: Mutation, run: Callable[[PipelineConfig], None]) -> None:
    print(f"without line {mutation.line} ({mutation.before})")  # shown above any other traceback
    try:
        run(parse_pipeline(mutation.text))
    except UserError as error:
        assert str(error), mutation


def _block_end(lines: list[str], start: int) -> int:
    if not lines[start].strip().endswith("{"):
        return start + 1
    depth = len(lines[start]) - len(lines[start].lstrip())
    closing = " " * depth + "}"
    return next(i for i in range(start + 1, len(lines)) if lines[i] == closing) + 1


def _rename(line: str) -> str:
    cut = line.index(":") if ":" in line and not line.strip().endswith("{") else line.index(" {")
    return f"{line[:cut]}_x{line[cut:]}"


def _with(lines: list[str], index: int, replacement: str) -> str:
    return _join([*lines[:index], replacement, *lines[index + 1 :]])


def _join(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
