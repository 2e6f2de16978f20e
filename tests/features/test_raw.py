# SPDX-License-Identifier: Apache-2.0
"""raw_feature and expr_feature: normalizers, boundaries, defaults, widths, integers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tzgen.errors import ConfigError, DataError
from tzgen.features.raw import parse_normalizer

from .feature_world import bags, one, parse

RAW = 'expression: "user:r"'


def dense(fields: str, column: Any, kind: str = "raw_feature", mode: str = "FG_DAG") -> Any:
    name = "r" if mode == "FG_DAG" else "f"
    return parse(one(kind, fields, mode), {name: column}).dense["f"]


@pytest.mark.parametrize(
    ("fields", "column", "wanted"),
    [
        ('default_value: "0.1"', ["0.25", "", "0.5", None], [[0.25], [0.1], [0.5], [0.1]]),
        ('default_value: "0.1"', [0.25, float("nan"), None], [[0.25], [0.1], [0.1]]),
        ('default_value: ""', [2.0, None], [[2.0], [0.0]]),
        ('value_dim: 2 default_value: "1\\x1d4"', ["2\x1d5", ""], [[2, 5], [1, 4]]),
        ('value_dim: 2 default_value: "7"', [["2", "5"], None], [[2, 5], [7, 7]]),
        ('value_dim: 2 separator: "|"', ["2|5", None], [[2, 5], [0, 0]]),
        (
            'normalizer: "method=log10,threshold=0.05,default=-5" default_value: "0.01"',
            [0.1, None, 10, 0.05],
            [[-1], [0.01], [1], [-5]],
        ),
        ('normalizer: "method=log10"', [0.0], [[-10]]),
        (
            'normalizer: "method=zscore,mean=1,standard_deviation=2"',
            [5, 1, None],
            [[2], [0], [0]],
        ),
        ('value_dim: 2 normalizer: "method=minmax,min=1,max=5"', [[2, 5]], [[0.25, 1]]),
        ('normalizer: "method=expression,expr=min(x, 2) + 1"', [1, 9], [[2], [3]]),
    ],
)
def test_numbers(fields: str, column: Any, wanted: list[list[float]]) -> None:
    found = dense(f"{RAW} {fields}", column)
    torch.testing.assert_close(found.float(), torch.tensor(wanted, dtype=torch.float32))


@pytest.mark.parametrize(
    ("fields", "column", "wanted"),
    [
        ('default_value: "0.1"', [0.2, 0.1, 0.3, None], [[2], [1], [3], [1]]),
        ('default_value: ""', ["0.2", "", "0.3"], [[2], [], [3]]),
        ('value_dim: 2 default_value: "0.1\\x1d0.4"', ["0.2\x1d0.5", ""], [[2, 3], [1, 3]]),
        (
            'normalizer: "method=log10,threshold=0.05,default=-5" default_value: "0.01"',
            [0.1, None, 10],
            [[0], [0], [3]],
        ),
    ],
)
def test_boundaries_make_ids(fields: str, column: Any, wanted: list[list[int]]) -> None:
    text = one("raw_feature", f"{RAW} boundaries: [0.05, 0.15, 0.25] embedding_dim: 4 {fields}")
    assert bags(parse(text, {"r": column}).ids["f"]) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "log10",
        "method=softmax,a=1",
        "method=zscore,mean=1",
        "method=zscore,mean=1,standard_deviation=0",
        "method=minmax,min=1,max=1",
        "method=minmax,min=a,max=1",
        "method=log10,threshold=1,default=2,base=3",
        "method=expression,exp=x",
        "method=expression,expr=y + 1",
    ],
)
def test_refused_normalizers(text: str) -> None:
    with pytest.raises(ConfigError, match="somewhere"):
        parse_normalizer(text, "somewhere")


def test_integers_stay_integers_unless_rescaled() -> None:
    today = 1_755_555_555
    found = dense(RAW, [today, None])
    assert found.dtype == torch.int64 and found.tolist() == [[today], [0]]
    assert (
        dense(f'{RAW} normalizer: "method=zscore,mean=0,standard_deviation=1"', [3]).dtype
        == torch.float32
    )
    assert dense(f"{RAW} embedding_dim: 4 mlp {{ }}", [3]).dtype == torch.float32
    sequence = dense(RAW, [[today, None], []], "sequence_raw_feature")
    assert sequence.values.dtype == torch.int64
    assert sequence.values.tolist() == [[today], [0]] and sequence.lengths.tolist() == [2, 0]


def test_a_wrong_width_names_the_row() -> None:
    with pytest.raises(DataError, match=r"row 101.*3 numbers in one row"):
        dense(f"{RAW} value_dim: 2", [[1, 2], [1, 2, 3]])
    with pytest.raises(DataError, match=r"row 100.*1 numbers in one step"):
        dense(f"{RAW} value_dim: 2", [[[1]]], "sequence_raw_feature")
    with pytest.raises(ConfigError, match="default_value"):
        dense(f'{RAW} value_dim: 3 default_value: "1\\x1d2"', [[1, 2, 3]])


def test_sequences_of_vectors() -> None:
    columns = ["0.5\x1d1.5;2\x1d3", "", None]
    found = dense(f"{RAW} value_dim: 2", columns, "sequence_raw_feature")
    assert found.values.tolist() == [[0.5, 1.5], [2, 3]] and found.lengths.tolist() == [2, 0, 0]


EXPR = 'variables: ["user:a", "item:b"]'


@pytest.mark.parametrize(
    ("fields", "a", "b", "wanted"),
    [
        ('expression: "a + b"', ["2", "", "3", None], [1, 1, 1, 1], [3, 9, 4, 9]),
        ('expression: "a > b ? 1 : 0"', [2, 0, None], [1, 1, 1], [1, 0, 9]),
        ('expression: "a / b"', [1, 1], [0, 2], [9, 0.5]),
        ('expression: "dot(a, b)"', [[1, 2], [], [3]], [[1, 1], [1, 1], [2]], [3, 9, 6]),
        ('expression: "log(a)"', [-1.0, 1.0], [1, 1], [9, 0]),
        ('expression: "2"', [1, 1], [1, 1], [2, 2]),
    ],
)
def test_formulas(fields: str, a: Any, b: Any, wanted: list[float]) -> None:
    text = one("expr_feature", f'{EXPR} {fields} default_value: "9"')
    found = parse(text, {"a": a, "b": b}).dense["f"]
    assert found.flatten().tolist() == wanted


def test_formula_over_the_steps_of_a_sequence() -> None:
    text = """data_config { fg_mode: FG_NORMAL }
      feature_configs { sequence_feature { sequence_name: "s"
        features { expr_feature { feature_name: "age" expression: "now - s__at"
          variables: ["user:now", "item:at"] } } } }"""
    found = parse(text, {"now": [10, 20], "s__at": [[2, 3], [4]]}).dense["s__age"]
    assert found.values.tolist() == [[8], [7], [16]] and found.lengths.tolist() == [2, 1]


def test_formulas_may_pad_and_be_hashed() -> None:
    fields = f'{EXPR} expression: "reduce_sum(a * b)" fill_missing: 1'
    columns = {"a": [[2, 3], [2, 3], [2, 3]], "b": [[4], [4, 5], [4, 5, 6]]}
    text = one("expr_feature", fields)
    assert parse(text, columns).dense["f"].tolist() == [[20], [23], [29]]
    alone = {name: column[:1] for name, column in columns.items()}
    assert parse(text, alone).dense["f"].tolist() == [[20]]  # as among other rows
    fields = f'{EXPR} expression: "a * b" num_buckets: 50 embedding_dim: 4'
    assert bags(parse(one("expr_feature", fields), {"a": [6], "b": [7]}).ids["f"]) == [[42]]


def test_encoded_numbers_are_taken_as_they_are() -> None:
    fields = 'normalizer: "method=log10" value_dim: 2 fg_encoded_default_value: "0.5\\x030.25"'
    found = dense(fields, ["1\x032", None], mode="FG_NONE")
    assert found.tolist() == [[1, 2], [0.5, 0.25]]
    text = one("raw_feature", "boundaries: [0.1, 0.2] embedding_dim: 4", "FG_NONE")
    assert bags(parse(text, {"f": [2, None, 0]}).ids["f"]) == [[2], [], [0]]


def test_bucketize_leaves_the_normalizer_out() -> None:
    fields = 'normalizer: "method=log10" boundaries: [0.5, 5] embedding_dim: 4'
    found = parse(one("raw_feature", fields, "FG_BUCKETIZE"), {"f": [1.0, 100.0, None]}).ids["f"]
    assert bags(found) == [[1], [2], [0]]
    assert not math.isnan(float(found.values.float().mean()))
