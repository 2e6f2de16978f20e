# SPDX-License-Identifier: Apache-2.0
"""Text format into messages, or every mistake of the text at once, with line and column.

google.protobuf.text_format stops at the first mistake and names no neighbour. When it has refused a
text, `scan` walks the same tokens along the descriptors and collects what is wrong.
"""

from __future__ import annotations

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

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


def merge(text: str, message: Message, path: str = "", *, positions: bool = True) -> list[Problem]:
    """Read `text` into an empty `message`; what is wrong with it, [] where it was read."""
    try:
        text_format.Parse(text, message)
    except text_format.ParseError:
        problems = scan(text, message.DESCRIPTOR, path, positions=positions)
        if problems:
            return problems
    else:
        return []
    message.Clear()
    try:
        text_format.Merge(text, message)
    except text_format.ParseError as error:  # the two readers disagree: show what it said
        place = f"line {error.GetLine()}, column {error.GetColumn()}" if positions else path
        return [Problem(place, "text", "protobuf text format", f"{error}.")]
    return []


def scan(text: str, root: Descriptor, path: str = "", *, positions: bool = True) -> list[Problem]:
    """Unknown fields and enum values, wrong types, contradictions, bad syntax.

    A scalar given twice with one value, and a message in two parts, are no mistake: protobuf's
    Merge, with which TorchEasyRec reads, takes them as well. Two values of one scalar, or two
    members of a oneof, contradict each other: Merge would silently keep the last. `path` prefixes
    every path; without `positions` lines and columns are left out.
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
        # Kept by path, so that the halves of a message given twice are seen together.
        self.counts: dict[str, int] = {}  # elements of a repeated field
        self.scalars: dict[str, object] = {}  # values of singular fields
        self.members: dict[tuple[str, str], str] = {}  # (message, oneof) -> its member

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
        while not (closing and self.tokens.TryConsume(closing)):
            if self.tokens.AtEnd():
                if not closing:
                    return
                raise self.tokens.ParseErrorPreviousToken(
                    f'Expected "{closing}" for {path}, opened at {opened}'
                )
            self._field(enclosing, path)
            if not self.tokens.TryConsume(","):
                self.tokens.TryConsume(";")

    def _field(self, enclosing: list[Descriptor], path: str) -> None:
        place = self.place()
        name = self.tokens.ConsumeIdentifierOrNumber()
        here = join(path, name)
        field = enclosing[-1].fields_by_name.get(name)
        if field is None:
            self.problems.append(unknown_field(name, here, enclosing, place))
            self._skip_value()
            return
        if field.containing_oneof is not None:
            other = self.members.setdefault((path, field.containing_oneof.name), field.name)
            if other != field.name:
                self.problems.append(second_member(field, other, f"{place}{here}"))
        if not self.tokens.TryConsume(":") and not is_message(field):
            self.problems.append(wrong_value(field, self.tokens.token, here, place))
            self._skip_value()
        elif field.is_repeated and self.tokens.TryConsume("["):
            while not self.tokens.TryConsume("]"):
                self._value(field, enclosing, here, place)
                if not self.tokens.TryConsume(","):
                    self.tokens.Consume("]")
                    break
        else:
            self._value(field, enclosing, here, place)

    def _value(
        self, field: FieldDescriptor, enclosing: list[Descriptor], path: str, start: str
    ) -> None:
        """One value; `start` is where its field's name stands."""
        element = path
        if field.is_repeated:
            index = self.counts.get(path, 0)
            self.counts[path] = index + 1
            if is_map(field):  # each entry is a message of its own, under the map's path
                self.scalars.pop(f"{path}.key", None)
                self.scalars.pop(f"{path}.value", None)
            else:
                element = f"{path}[{index}]"
        place = self.place()
        if is_message(field):
            closing = _CLOSES.get(self.tokens.token, "") if self.tokens.token != "[" else ""
            if closing:
                self.tokens.NextToken()
                inside = [*enclosing, field.message_type]
                self.message(inside, element, closing, place.rstrip(", "))
            else:
                self._wrong(field, element, place)
        elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            if self.tokens.token[:1] in ("'", '"'):
                self._once(field, element, start, self.tokens.ConsumeByteString())
            else:
                self._wrong(field, element, place)
        else:
            try:
                value = parse_scalar(field, self.tokens.token)
                self.tokens.NextToken()
                self._once(field, element, start, value)
            except ValueError:
                self._wrong(field, element, place)

    def _once(self, field: FieldDescriptor, path: str, place: str, value: object) -> None:
        """A second value of a singular field must equal the first."""
        if self.scalars.setdefault(path, value) != value:
            remedy = "Keep one of the two."
            found = f"a second value, {_shown(field, value)}"
            expected = f"this field once: {_shown(field, self.scalars[path])} stands before"
            self.problems.append(Problem(f"{place}{path}", found, expected, remedy))

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


def _shown(field: FieldDescriptor, value: object) -> str:
    if field.enum_type is not None:
        return str(field.enum_type.values_by_number[value].name)
    if isinstance(value, bytes):
        return repr(value.decode("utf-8", "replace"))
    return str(value).lower() if isinstance(value, bool) else str(value)
