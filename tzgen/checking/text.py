# SPDX-License-Identifier: Apache-2.0
"""Plain text for a terminal 100 columns wide: sections, aligned tables, wrapped lists, units."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 100
GAP = "  "
TIE = "\N{NO-BREAK SPACE}"  # a space where lines do not break


def section(title: str, lines: Iterable[str]) -> str:
    """A titled block; a blank line follows it."""
    head = f"== {title} "
    return "\n".join([head + "=" * max(WIDTH - len(head), 0), *lines, ""])


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, align: str, indent: int = 2
) -> list[str]:
    """Lines of a table. `align`: a letter a column, "l" or "r"; "w" (the last) wraps at the margin.

    A row with fewer cells than the header ends early.
    """
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[at]) for row in cells if at < len(row)) for at in range(len(header))]
    lines = []
    for row in cells:
        line = " " * indent
        for cell, kind, width in zip(row, align, widths, strict=False):
            if kind == "w":
                line += _hanging(cell, len(line))
            else:
                cell = cell.replace(TIE, " ")
                line += (cell.rjust(width) if kind == "r" else cell.ljust(width)) + GAP
        lines.append(line.rstrip())
    return lines


def fields(pairs: Iterable[tuple[str, str]], *, indent: int = 2) -> list[str]:
    """ "name   value" lines, values aligned and wrapped."""
    listed = list(pairs)
    width = max((len(name) for name, _ in listed), default=0)
    column = indent + width + len(GAP)
    return [
        " " * indent + name.ljust(width) + GAP + _hanging(value, column) for name, value in listed
    ]


def bullets(texts: Iterable[str], *, indent: int = 4) -> list[str]:
    """ "- text" lines, wrapped."""
    lead = " " * indent + "- "
    return [lead + _hanging(text, len(lead)) for text in texts]


def _hanging(text: str, column: int) -> str:
    """`text` wrapped at the margin, later lines starting at `column`."""
    room = max(WIDTH - column, 30)
    parts = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    return ("\n" + " " * column).join(parts).replace(TIE, " ")


def count(number: int) -> str:
    """1234567 -> '1,234,567'."""
    return f"{number:,}"


def size(number: float) -> str:
    """Bytes in the largest unit that keeps a digit before the point: '12.5 MiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def short(number: float) -> str:
    """1234567 -> '1.23 M'; for FLOPs."""
    for unit in ("", " K", " M", " G", " T"):
        if number < 1000:
            return f"{number:.0f}" if not unit else f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} P"


def share(part: int, whole: int, noun: str) -> str:
    """'3 of 8 rows (37.5 %)'."""
    return f"{count(part)} of {plural(whole, noun)} ({100 * part / max(whole, 1):.1f} %)"


def plural(number: int, noun: str) -> str:
    """'1 row', '2 rows'."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"
