# SPDX-License-Identifier: Apache-2.0
"""Formulas over numbers, parsed to a tree and evaluated on whole columns. Nothing is executed.

From weak to strong: ?:, ||, &&, |, &, comparisons, + -, * / %, unary - + !, ^ and ** (power, to the
right); calls of the functions below; _pi and _e. Truth is 1 and 0. N bags, T values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tzgen.errors import ConfigError, Problem
from tzgen.features.bags import I64, starts_of, within

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Vector:
    """values float64 [N], or a scalar array, without `lengths`; else [T] in bags of lengths [N]."""

    values: F64
    lengths: I64 | None = None


@dataclass(frozen=True)
class Number:
    value: float


@dataclass(frozen=True)
class Name:
    name: str


@dataclass(frozen=True)
class Call:
    function: str
    arguments: tuple[Node, ...]


Node = Number | Name | Call


@dataclass(frozen=True)
class Expression:
    """A parsed formula; `names` are the variables that it may use."""

    text: str
    tree: Node

    def __call__(self, variables: Mapping[str, Vector], fill: float = np.nan) -> Vector:
        """`fill` pads the shorter of two lists of one bag; a list of one is repeated."""
        with np.errstate(all="ignore"):
            return _evaluate(self.tree, variables, fill)


def parse_expression(text: str, names: Sequence[str], path: str) -> Expression:
    """Raises ConfigError at `path` for what is no formula over `names`."""
    parser = _Parser(text, frozenset(names), path)
    return Expression(text, parser.parse())


_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<symbol>\*\*|\|\||&&|<=|>=|==|!=|[-+*/%^<>|&!?:(),]))"
)
_CONSTANTS = {"_pi": float(np.pi), "_e": float(np.e)}
_BINARY = {
    "||": 2, "&&": 3, "|": 4, "&": 5, "<=": 6, ">=": 6, "!=": 6, "==": 6, ">": 6, "<": 6,
    "+": 7, "-": 7, "*": 8, "/": 8, "%": 8, "^": 10, "**": 10,
}  # fmt: skip
_UNARY, _POWER = 9, 10


class _Parser:
    """Precedence climbing over the tokens of one formula."""

    def __init__(self, text: str, names: frozenset[str], path: str) -> None:
        self.text, self.names, self.path = text, names, path
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                raise self.error(f"{text[at:].strip()[:10]!r} at position {at}", "a formula")
            self.tokens.append((str(match.lastgroup), match.group(str(match.lastgroup))))
            at = match.end()
        self.at = 0

    def error(self, value: str, expected: str) -> ConfigError:
        remedy = f"Correct the formula {self.text!r}."
        return ConfigError([Problem(self.path, value, expected, remedy)])

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def next(self, wanted: str = "") -> tuple[str, str]:
        kind, token = self.tokens[self.at] if self.at < len(self.tokens) else ("end", "the end")
        if (wanted and token != wanted) or kind == "end":
            raise self.error(token, wanted or "a number, a variable or a function")
        self.at += 1
        return kind, token

    def parse(self) -> Node:
        tree = self.ternary()
        if self.peek():
            raise self.error(repr(self.peek()), "an operator or the end of the formula")
        return tree

    def ternary(self) -> Node:
        condition = self.binary(2)
        if self.peek() != "?":
            return condition
        self.next()
        then = self.ternary()
        self.next(":")
        return Call("if", (condition, then, self.ternary()))

    def binary(self, weakest: int) -> Node:
        left = self.unary()
        while (strength := _BINARY.get(self.peek(), 0)) >= weakest:
            operator = self.next()[1]
            right = self.binary(strength if strength == _POWER else strength + 1)
            left = Call(operator, (left, right))
        return left

    def unary(self) -> Node:
        if self.peek() in ("-", "+", "!"):
            operator = self.next()[1]
            operand = self.binary(_POWER)
            return operand if operator == "+" else Call(f"unary{operator}", (operand,))
        return self.atom()

    def atom(self) -> Node:
        kind, token = self.next()
        if token == "(":
            inner = self.ternary()
            self.next(")")
            return inner
        if kind == "number":
            return Number(float(token))
        if kind == "name" and self.peek() == "(":
            return self.call(token)
        if kind == "name" and token in self.names:
            return Name(token)
        if token in _CONSTANTS:
            return Number(_CONSTANTS[token])
        raise self.error(repr(token), f"one of the variables {sorted(self.names)}")

    def call(self, function: str) -> Node:
        self.next("(")
        arguments = [] if self.peek() == ")" else [self.ternary()]
        while self.peek() == ",":
            self.next()
            arguments.append(self.ternary())
        self.next(")")
        if function not in FUNCTIONS:
            raise self.error(
                f"{function!r}", f"one of the functions {', '.join(sorted(FUNCTIONS))}"
            )
        arity = FUNCTIONS[function].arity
        if (arity < 0 and not arguments) or (arity >= 0 and len(arguments) != arity):
            wanted = f"{arity} arguments" if arity >= 0 else "arguments"
            raise self.error(f"{function} with {len(arguments)}", wanted)
        return Call(function, tuple(arguments))


@dataclass(frozen=True)
class Function:
    """arity -1: any number. `bagwise` functions see whole bags, others single numbers."""

    arity: int
    compute: Callable[..., Any]
    bagwise: bool = False


def _evaluate(node: Node, variables: Mapping[str, Vector], fill: float) -> Vector:
    if isinstance(node, Number):
        return Vector(np.asarray(node.value))
    if isinstance(node, Name):
        return variables[node.name]
    arguments = [_evaluate(argument, variables, fill) for argument in node.arguments]
    function = _OPERATORS.get(node.function) or FUNCTIONS[node.function]
    arrays, lengths = _broadcast(arguments, fill)
    if function.bagwise:
        if lengths is None:
            shape = np.broadcast_shapes(*(array.shape for array in arrays))
            lengths = np.ones(shape or (1,), np.int64)
        bags = [np.broadcast_to(array, (int(lengths.sum()),)) for array in arrays]
        result = function.compute(lengths, *bags)
        return Vector(result) if result.size == lengths.size else Vector(result, lengths)
    return Vector(np.asarray(function.compute(*arrays), np.float64), lengths)


def _broadcast(arguments: Sequence[Vector], fill: float) -> tuple[list[F64], I64 | None]:
    """Numbers and lists of one are repeated along the longest list of their bag, others padded."""
    lists = [argument.lengths for argument in arguments if argument.lengths is not None]
    if not lists:
        return [argument.values for argument in arguments], None
    longest = np.maximum.reduce(lists)
    return [_stretch(argument, longest, fill) for argument in arguments], longest


def _stretch(vector: Vector, longest: I64, fill: float) -> F64:
    values, lengths = vector.values, vector.lengths
    if lengths is None:
        return np.repeat(values, longest) if values.ndim else values
    if np.array_equal(lengths, longest):
        return values
    own = np.repeat(lengths, longest)
    place = np.where(own == 1, 0, within(longest))
    inside = place < own
    out = np.full(place.size, fill)
    out[inside] = values[(np.repeat(starts_of(lengths), longest) + place)[inside]]
    return out


def _reduce(ufunc: np.ufunc, lengths: I64, values: F64) -> F64:
    """One number a bag; NaN for an empty one."""
    out = np.full(lengths.size, np.nan)
    full = lengths > 0
    if full.any():
        out[full] = ufunc.reduceat(values, starts_of(lengths)[full])
    return out


def _sum(lengths: I64, values: F64) -> F64:
    return _reduce(np.add, lengths, values)


def _variance(lengths: I64, values: F64, less: int) -> F64:
    centred = values - np.repeat(_sum(lengths, values) / lengths, lengths)
    return _sum(lengths, centred**2) / (lengths - less)


def _round(x: F64) -> F64:
    """Halves away from zero."""
    return np.trunc(x + np.copysign(0.5, x))


def _haversine(lng1: F64, lat1: F64, lng2: F64, lat2: F64) -> F64:
    """Kilometres between two points given in degrees, on a sphere of radius 6371."""
    lng1, lat1, lng2, lat2 = (np.radians(x) for x in (lng1, lat1, lng2, lat2))
    chord = np.sin((lat2 - lat1) / 2) ** 2
    chord = chord + np.cos(lat1) * np.cos(lat2) * np.sin((lng2 - lng1) / 2) ** 2
    return 2 * 6371.0 * np.arcsin(np.sqrt(chord))


def _all(ufunc: np.ufunc) -> Callable[..., F64]:
    def over(*arrays: F64) -> F64:
        out = arrays[0]
        for array in arrays[1:]:
            out = ufunc(out, array)
        return out

    return over


def _truth(function: Callable[..., Any]) -> Callable[..., F64]:
    return lambda *arrays: np.asarray(function(*arrays), np.float64)


def _bits(function: Callable[..., Any]) -> Callable[..., F64]:
    return lambda a, b: function(np.asarray(a, np.int64), np.asarray(b, np.int64)).astype(float)


_PLAIN: dict[str, Callable[..., Any]] = {
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos,
    "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh,
    "acosh": np.arccosh, "atanh": np.arctanh, "log2": np.log2, "log10": np.log10, "log": np.log,
    "ln": np.log, "exp": np.exp, "sqrt": np.sqrt, "sign": np.sign, "abs": np.abs, "rint": np.rint,
    "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc, "round": _round,
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
}  # fmt: skip

FUNCTIONS: dict[str, Function] = {
    name: Function(1, compute) for name, compute in _PLAIN.items()
} | {
    "if": Function(3, lambda c, a, b: np.where(c != 0, a, b)),
    "pow": Function(2, np.power),
    "roundp": Function(2, lambda x, digits: _round(x * 10**digits) / 10**digits),
    "sphere_dist": Function(4, _haversine),
    "haversine": Function(4, _haversine),
    "min": Function(-1, _all(np.minimum)),
    "max": Function(-1, _all(np.maximum)),
    "sum": Function(-1, _all(np.add)),
    "avg": Function(-1, lambda *arrays: _all(np.add)(*arrays) / len(arrays)),
    "len": Function(1, lambda n, x: n.astype(np.float64), True),
    "l2_norm": Function(1, lambda n, x: x / np.repeat(np.sqrt(_sum(n, x * x)), n), True),
    "squared_norm": Function(1, lambda n, x: _sum(n, x * x), True),
    "dot": Function(2, lambda n, x, y: _sum(n, x * y), True),
    "euclid_dist": Function(2, lambda n, x, y: np.sqrt(_sum(n, (x - y) ** 2)), True),
    "std_dev": Function(1, lambda n, x: np.sqrt(_variance(n, x, 0)), True),
    "pop_std_dev": Function(1, lambda n, x: np.sqrt(_variance(n, x, 1)), True),
    "variance": Function(1, lambda n, x: _variance(n, x, 0), True),
    "pop_variance": Function(1, lambda n, x: _variance(n, x, 1), True),
    "reduce_min": Function(1, lambda n, x: _reduce(np.minimum, n, x), True),
    "reduce_max": Function(1, lambda n, x: _reduce(np.maximum, n, x), True),
    "reduce_sum": Function(1, _sum, True),
    "reduce_mean": Function(1, lambda n, x: _sum(n, x) / n, True),
    "reduce_prod": Function(1, lambda n, x: _reduce(np.multiply, n, x), True),
}

_OPERATORS: dict[str, Function] = {
    "||": Function(2, _truth(np.logical_or)), "&&": Function(2, _truth(np.logical_and)),
    "|": Function(2, _bits(np.bitwise_or)), "&": Function(2, _bits(np.bitwise_and)),
    "<=": Function(2, _truth(np.less_equal)), ">=": Function(2, _truth(np.greater_equal)),
    "!=": Function(2, _truth(np.not_equal)), "==": Function(2, _truth(np.equal)),
    ">": Function(2, _truth(np.greater)), "<": Function(2, _truth(np.less)),
    "+": Function(2, np.add), "-": Function(2, np.subtract), "*": Function(2, np.multiply),
    "/": Function(2, np.divide), "%": Function(2, np.fmod), "^": Function(2, np.power),
    "**": Function(2, np.power), "unary-": Function(1, np.negative),
    "unary!": Function(1, _truth(np.logical_not)),
}  # fmt: skip
