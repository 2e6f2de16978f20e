# SPDX-License-Identifier: Apache-2.0
"""Formulas against Python arithmetic; lists against loops; refusals."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from tzgen.errors import ConfigError
from tzgen.features.expression import Vector, parse_expression

A, B = np.array([2.0, -3.0, 0.5]), np.array([1.0, 4.0, 0.5])


def compute(text: str) -> list[float]:
    expression = parse_expression(text, ["a", "b"], "e")
    found = expression({"a": Vector(A), "b": Vector(B)})
    return np.broadcast_to(found.values, A.shape).tolist()


@pytest.mark.parametrize(
    ("text", "python"),
    [
        ("a + b * 2 - 1", lambda a, b: a + b * 2 - 1),
        ("(a + b) * 2", lambda a, b: (a + b) * 2),
        ("a - b - 1", lambda a, b: a - b - 1),
        ("8 / 2 / 2 * a", lambda a, b: 8 / 2 / 2 * a),
        ("2 ^ 3 ^ 2 + a", lambda a, b: 2**3**2 + a),
        ("-a ** 2", lambda a, b: -(a**2)),
        ("2 ** -b", lambda a, b: 2**-b),
        ("a > b ? a : b", lambda a, b: a if a > b else b),
        ("a > 0 ? b > 1 ? 1 : 2 : 3", lambda a, b: (1 if b > 1 else 2) if a > 0 else 3),
        ("a > 0 && b > 2 || a == b", lambda a, b: float((a > 0 and b > 2) or a == b)),
        ("!(a != b)", lambda a, b: float(a == b)),
        ("a <= b", lambda a, b: float(a <= b)),
        ("5 & 6 | 1", lambda a, b: float(5 & 6 | 1)),
        ("max(a, b, 1) - min(a, b)", lambda a, b: max(a, b, 1) - min(a, b)),
        ("sum(a, b, 3) + avg(a, b)", lambda a, b: a + b + 3 + (a + b) / 2),
        (
            "sqrt(abs(a)) + exp(b) + log(b)",
            lambda a, b: math.sqrt(abs(a)) + math.exp(b) + math.log(b),
        ),
        ("sigmoid(a)", lambda a, b: 1 / (1 + math.exp(-a))),
        ("if(a, b, _pi)", lambda a, b: b if a else math.pi),
        ("roundp(a * 1.005, 1) + trunc(b)", lambda a, b: round(a * 1.005, 1) + int(b)),
        ("1.5e1 + .5 * a", lambda a, b: 15 + 0.5 * a),
    ],
)
def test_agrees_with_python(text: str, python: Callable[[float, float], float]) -> None:
    wanted = [python(a, b) for a, b in zip(A.tolist(), B.tolist(), strict=True)]
    assert compute(text) == pytest.approx(wanted)


def test_round_is_away_from_zero() -> None:
    found = parse_expression("round(a)", ["a"], "e")({"a": Vector(np.array([0.5, -0.5, 2.5, 2.4]))})
    assert found.values.tolist() == [1.0, -1.0, 3.0, 2.0]


def test_distance_of_two_cities() -> None:
    """Berlin to Paris is about 878 km."""
    found = parse_expression("haversine(13.405, 52.52, 2.3522, 48.8566)", [], "e")({})
    assert float(found.values) == pytest.approx(878, abs=2)


X = [[1.0, 2.0, 3.0], [4.0], [], [0.0, -2.0]]
Y = [[1.0, 0.5, 2.0], [3.0], [], [1.0, 1.0]]


def vector(lists: list[list[float]]) -> Vector:
    flat = np.array([x for one in lists for x in one])
    return Vector(flat, np.array([len(one) for one in lists]))


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("dot(x, y)", lambda x, y: sum(a * b for a, b in zip(x, y, strict=True))),
        ("len(x)", lambda x, y: len(x)),
        ("reduce_sum(x)", lambda x, y: sum(x)),
        ("reduce_min(x)", lambda x, y: min(x)),
        ("reduce_max(x)", lambda x, y: max(x)),
        ("reduce_prod(x)", lambda x, y: math.prod(x)),
        ("reduce_mean(x)", lambda x, y: np.mean(x)),
        ("euclid_dist(x, y)", lambda x, y: np.linalg.norm(np.subtract(x, y))),
        ("squared_norm(x)", lambda x, y: np.dot(x, x)),
        ("std_dev(x)", lambda x, y: np.std(x)),
        ("variance(x)", lambda x, y: np.var(x)),
    ],
)
def test_functions_of_lists(text: str, function: Callable[..., float]) -> None:
    found = parse_expression(text, ["x", "y"], "e")({"x": vector(X), "y": vector(Y)})
    assert found.lengths is None
    for value, x, y in zip(found.values, X, Y, strict=True):
        if x:
            assert value == pytest.approx(function(x, y))


def test_lists_and_numbers_broadcast_and_pad() -> None:
    n = Vector(np.array([10.0, 20.0, 30.0, 40.0]))
    found = parse_expression("x * n", ["x", "n"], "e")({"x": vector(X), "n": n})
    assert found.lengths is not None and found.lengths.tolist() == [3, 1, 0, 2]
    assert found.values.tolist() == [10, 20, 30, 80, 0, -80]
    other = vector([[1.0, 1.0], [1.0, 2.0], [5.0], [7.0]])
    padded = parse_expression("x + o", ["x", "o"], "e")({"x": vector(X), "o": other}, fill=0.0)
    assert padded.values.tolist() == [2, 3, 3, 5, 6, 5, 7, 5]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a +", "a number, a variable"),
        ("(a", r"\)"),
        ("a b", "an operator"),
        ("a $ b", "a formula"),
        ("c + 1", "variables"),
        ("exec(a)", "functions"),
        ("log(a, b)", "1 arguments"),
        ("min()", "arguments"),
        ("a ? b", ":"),
        ("__import__", "variables"),
        ("", "a number"),
    ],
)
def test_refuses_what_is_no_formula(text: str, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        parse_expression(text, ["a", "b"], "feature_configs[0].expr_feature.expression")
