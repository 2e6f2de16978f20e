# SPDX-License-Identifier: Apache-2.0
"""Numbers: normalizers and formulas. T values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tzgen.errors import ConfigError, Problem
from tzgen.features.arrow import Layout, read_bags
from tzgen.features.bags import Bags, align, numbers, starts_of, text
from tzgen.features.expression import Expression, Vector, parse_expression

_FORMS = {
    "log10": ("threshold", "default"),
    "zscore": ("mean", "standard_deviation"),
    "minmax": ("min", "max"),
    "expression": ("expr",),
}


@dataclass(frozen=True)
class Normalizer:
    """x float [T] -> float64 [T]. `parameters` are the method's, in the order of its form."""

    method: str
    parameters: tuple[float, ...] = ()
    expression: Expression | None = None

    def __call__(self, values: NDArray[np.number]) -> NDArray[np.float64]:
        x = values.astype(np.float64)
        if self.expression is not None:
            found = self.expression({"x": Vector(x)}).values
            return np.ascontiguousarray(np.broadcast_to(found, x.shape))
        first, second = self.parameters
        if self.method == "log10":
            above = x > first
            return np.where(above, np.log10(np.where(above, x, 1.0)), second)
        if self.method == "zscore":
            return (x - first) / second
        return (x - first) / (second - first)


def parse_normalizer(form: str, path: str) -> Normalizer | None:
    """ "method=zscore,mean=0.1,standard_deviation=10" and its kin; "" is None."""
    if not form:
        return None
    method, _, rest = form.removeprefix("method=").partition(",")
    names = _FORMS.get(method)
    if names is None or not form.startswith("method="):
        raise _wrong(path, form)
    if method == "expression":
        key, _, formula = rest.partition("=")
        if key.strip() != "expr":
            raise _wrong(path, form)
        return Normalizer(method, expression=parse_expression(formula, ["x"], path))
    given = dict(part.strip().partition("=")[::2] for part in rest.split(",") if part)
    if method == "log10":
        given = {"threshold": "1e-10", "default": "-10", **given}
    if set(given) != set(names):
        raise _wrong(path, form)
    try:
        first, second = (float(given[name]) for name in names)
    except ValueError as error:
        raise _wrong(path, form) from error
    if (method == "zscore" and second == 0) or (method == "minmax" and first == second):
        raise _wrong(path, form)
    return Normalizer(method, (first, second))


def _wrong(path: str, form: str) -> ConfigError:
    forms = "; ".join(
        f"method={m},{','.join(f'{p}=..' for p in form)}" for m, form in _FORMS.items()
    )
    remedy = "Write one of those forms; a scale must not be zero."
    return ConfigError([Problem(f"{path}.normalizer", repr(form), forms, remedy)])


@dataclass(frozen=True)
class Numbers:
    """raw_feature: the input as numbers, normalised."""

    normalizer: Normalizer | None

    def __call__(self, inputs: Sequence[Bags]) -> Bags:
        bags = numbers(inputs[0])
        return normalised(bags, self.normalizer)


def normalised(bags: Bags, normalizer: Normalizer | None) -> Bags:
    if normalizer is None:
        return bags
    return replace(bags, values=normalizer(bags.values))


@dataclass(frozen=True)
class Formula:
    """expr_feature: missing where a variable is missing or the result is not finite."""

    expression: Expression
    names: tuple[tuple[str, ...], ...]  # spellings of each input
    fill: float

    def __call__(self, inputs: Sequence[Bags]) -> Bags:
        inputs = [numbers(bags) for bags in align(inputs)]
        steps = next((bags.steps for bags in inputs if bags.steps is not None), None)
        variables: dict[str, Vector] = {}
        present = np.ones(inputs[0].num_bags, np.bool_)
        for bags, spellings in zip(inputs, self.names, strict=True):
            if bags.lengths is not None:
                present &= bags.lengths > 0
            variables |= dict.fromkeys(spellings, _vector(bags))
        result = self.expression(variables, self.fill)
        lengths = result.lengths
        if lengths is None:
            lengths = np.ones(present.size, np.int64)
        values = np.broadcast_to(result.values, (int(lengths.sum()),))
        keep = np.repeat(present, lengths) & np.isfinite(values)
        counts = np.bincount(
            np.repeat(np.arange(lengths.size), lengths)[keep], minlength=lengths.size
        )
        return Bags(values[keep], counts.astype(np.int64), steps)


def _vector(bags: Bags) -> Vector:
    """At most one value a bag is a number (NaN where missing); more are lists."""
    values = bags.values.astype(np.float64)
    if bags.lengths is None:
        return Vector(values)
    if bags.lengths.size and int(bags.lengths.max()) > 1:
        return Vector(values, bags.lengths)
    out = np.full(bags.lengths.size, np.nan)
    out[bags.lengths > 0] = values
    return Vector(out)


def summarise(bags: Bags, combiner: str) -> Bags:
    """One number a bag by "sum", "mean", "min", "max" or "count"; empty bags stay empty."""
    if bags.lengths is None or (combiner != "count" and int(bags.lengths.max(initial=0)) <= 1):
        values = np.ones(bags.num_bags) if combiner == "count" else bags.values
        return replace(bags, values=values)
    full = bags.lengths > 0
    starts, counts = starts_of(bags.lengths)[full], bags.lengths[full]
    values = bags.values.astype(np.float64)
    if combiner == "count":
        out = counts.astype(np.float64)
    elif not counts.size:
        out = values
    else:
        ufunc = {"min": np.minimum, "max": np.maximum}.get(combiner, np.add)
        out = ufunc.reduceat(values, starts)
        out = out / counts if combiner == "mean" else out
    return replace(bags, values=out, lengths=full.astype(np.int64), weights=None)


def split_numbers(bags: Bags, separator: str) -> Bags:
    """Texts of several numbers each ("1,2") as that many numbers; bags keep their order."""
    inner = numbers(read_bags(text(bags.values), Layout(separator=separator)))
    per_value = inner.all_lengths()
    lengths = bags.all_lengths()
    bag = np.repeat(np.arange(lengths.size), lengths)
    counts = np.bincount(bag, weights=per_value, minlength=lengths.size).astype(np.int64)
    return Bags(inner.values, counts, bags.steps)
