# SPDX-License-Identifier: Apache-2.0
"""Every mistake of a text-format config at once, each with line and column.

google.protobuf.text_format stops at the first mistake and names no neighbour. When it has refused a
text, `scan` walks the same tokens along the descriptors and collects what is wrong.
"""

from __future__ import annotations

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tzgen.config.schema import (
    is_map,
    is_message,
    join,
    parse_scalar,
    second_member,
    unknown_field,
    wrong_value,
)
from tzgen.errors import Problem

_CLOSES = {"{": "}", "<": ">", "[": "]"}


def scan(text: str, root: Descriptor, path: str = "", *, positions: bool = True) -> list[Problem]:
    """Unknown fields and enum values, wrong types, fields and oneofs set twice, bad syntax.

    `path` prefixes every path; without `positions` lines and columns are left out.
    """
    walker = _Walker(text, positions)
    try:
        walker.message([root], path, closing="")
    except text_format.ParseError as error:  # grammar: nothing after it can be trusted
        walker.problems.append(walker.syntax(error, path))
    return walker.problems


class _Walker:
    def __init__(self, text: str, positions: bool) -> None:
        self.lines = text.split("\n")
        self.positions = positions
        self.problems: list[Problem] = []
        self.tokens = text_format.Tokenizer(self.lines)

    def place(self) -> str:
        """'line 3, column 5, ' of the token that is read next."""
        if not self.positions:
            return ""
        here = self.tokens.ParseError("")
        return f"line {here.GetLine()}, column {here.GetColumn()}, "

    def syntax(self, error: text_format.ParseError, path: str) -> Problem:
        line = error.GetLine() or 1
        place = f"line {line}, column {error.GetColumn() or 1}" if self.positions else path
        shown = self.lines[line - 1].strip() if line <= len(self.lines) else ""
        said = str(error).split(" : ", 1)[-1].split("': ", 1)[-1].strip().rstrip(".")
        return Problem(
            place,
            repr(shown),
            "protobuf text format",
            f"The parser says: {said}. Check braces and quotes.",
        )

    def message(
        self, enclosing: list[Descriptor], path: str, closing: str, opened: str = ""
    ) -> None:
        """Fields up to `closing` ('' for the end of the text); `opened` says where it began."""
        counts: dict[str, int] = {}
        members: dict[str, str] = {}
        while not (closing and self.tokens.TryConsume(closing)):
            if self.tokens.AtEnd():
                if not closing:
                    return
                raise self.tokens.ParseErrorPreviousToken(
                    f'Expected "{closing}" for {path}, opened at {opened}'
                )
            self._field(enclosing, path, counts, members)
            if not self.tokens.TryConsume(","):
                self.tokens.TryConsume(";")

    def _field(
        self,
        enclosing: list[Descriptor],
        path: str,
        counts: dict[str, int],
        members: dict[str, str],
    ) -> None:
        place = self.place()
        name = self.tokens.ConsumeIdentifierOrNumber()
        here = join(path, name)
        field = enclosing[-1].fields_by_name.get(name)
        if field is None:
            self.problems.append(unknown_field(name, here, enclosing, place))
            self._skip_value()
            return
        if not field.is_repeated:
            self._twice(field, here, place, counts, members)
        if not self.tokens.TryConsume(":") and not is_message(field):
            self.problems.append(wrong_value(field, self.tokens.token, here, place))
            self._skip_value()
        elif field.is_repeated and self.tokens.TryConsume("["):
            while not self.tokens.TryConsume("]"):
                self._value(field, enclosing, here, counts)
                if not self.tokens.TryConsume(","):
                    self.tokens.Consume("]")
                    break
        else:
            self._value(field, enclosing, here, counts)

    def _twice(
        self,
        field: FieldDescriptor,
        path: str,
        place: str,
        counts: dict[str, int],
        members: dict[str, str],
    ) -> None:
        if field.name in counts:
            remedy = "Keep one of the two."
            self.problems.append(
                Problem(f"{place}{path}", "a second value", "this field once", remedy)
            )
        counts[field.name] = 1
        if field.containing_oneof is None:
            return
        oneof = field.containing_oneof.name
        other = members.setdefault(oneof, field.name)
        if other != field.name:
            self.problems.append(second_member(field, other, f"{place}{path}"))

    def _value(
        self, field: FieldDescriptor, enclosing: list[Descriptor], path: str, counts: dict[str, int]
    ) -> None:
        if field.is_repeated:
            index = counts.get(field.name, 0)
            counts[field.name] = index + 1
            path = path if is_map(field) else f"{path}[{index}]"
        place = self.place()
        if is_message(field):
            closing = _CLOSES.get(self.tokens.token, "") if self.tokens.token != "[" else ""
            if closing:
                self.tokens.NextToken()
                self.message([*enclosing, field.message_type], path, closing, place.rstrip(", "))
            else:
                self._wrong(field, path, place)
        elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            if self.tokens.token[:1] in ("'", '"'):
                self.tokens.ConsumeString()
            else:
                self._wrong(field, path, place)
        else:
            try:
                parse_scalar(field, self.tokens.token)
                self.tokens.NextToken()
            except ValueError:
                self._wrong(field, path, place)

    def _wrong(self, field: FieldDescriptor, path: str, place: str) -> None:
        self.problems.append(wrong_value(field, self.tokens.token, path, place))
        self._skip_one()

    def _skip_value(self) -> None:
        self.tokens.TryConsume(":")
        self._skip_one()

    def _skip_one(self) -> None:
        """One value of unknown type: a bracketed block, adjacent strings, or a single token."""
        token = self.tokens.token
        if token in _CLOSES:
            self.tokens.NextToken()
            while not self.tokens.TryConsume(_CLOSES[token]):
                if self.tokens.AtEnd():
                    raise self.tokens.ParseErrorPreviousToken(f'Expected "{_CLOSES[token]}"')
                self._skip_one()
        elif token[:1] in ("'", '"'):
            while self.tokens.token[:1] in ("'", '"'):
                self.tokens.NextToken()
        elif token in ("}", ">", "]"):
            raise self.tokens.ParseError(f'Unexpected "{token}"')
        else:
            self.tokens.NextToken()
