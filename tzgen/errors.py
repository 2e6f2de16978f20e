# SPDX-License-Identifier: Apache-2.0
"""Errors that speak to the user. A verb prints them without a traceback and exits with status 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class UserError(ValueError):
    """Something the user gave is wrong; the message names the thing, the value and the remedy."""


@dataclass(frozen=True)
class Problem:
    """One finding about a config: which field, what it holds, what was expected, what to do."""

    path: str
    value: str
    expected: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: found {self.value}; expected {self.expected}. {self.remedy}"


class ConfigError(UserError):
    """Every problem of a config at once."""

    def __init__(self, problems: Sequence[Problem], source: str = "config") -> None:
        self.problems = tuple(problems)
        self.source = source
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        count = len(self.problems)
        super().__init__(f"{source}: {count} problem{'s' if count != 1 else ''}\n{lines}")


class DataError(UserError):
    """Input data that cannot be used: where it lies, what was found, what was expected."""

    def __init__(
        self,
        *,
        file: str,
        found: str,
        expected: str,
        remedy: str,
        column: str | None = None,
        row_group: int | None = None,
        row: int | None = None,
    ) -> None:
        self.file, self.column, self.row_group, self.row = file, column, row_group, row
        self.found, self.expected, self.remedy = found, expected, remedy
        place = [file]
        if row_group is not None:
            place.append(f"row group {row_group}")
        if row is not None:
            place.append(f"row {row}")
        if column is not None:
            place.append(f"column {column!r}")
        super().__init__(f"{', '.join(place)}: found {found}; expected {expected}. {remedy}")

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only errors cross process borders
        return _rebuild_data_error, (
            {
                "file": self.file,
                "found": self.found,
                "expected": self.expected,
                "remedy": self.remedy,
                "column": self.column,
                "row_group": self.row_group,
                "row": self.row,
            },
        )


def _rebuild_data_error(fields: dict[str, object]) -> DataError:
    return DataError(**fields)  # type: ignore[arg-type]
