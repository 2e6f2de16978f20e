# SPDX-License-Identifier: Apache-2.0
"""The numbering of vocabularies, with and without default_bucketize_value."""

from __future__ import annotations

from pathlib import Path

import pytest

from tzgen.errors import ConfigError, UserError
from tzgen.features import create_features
from tzgen.features.vocabulary import read_vocabulary

from .feature_world import bags, make_config, one, parse

EXPRESSION = 'expression: "user:c" embedding_dim: 4'
COLUMN = {"c": ["abc\x1defg", "", "hij", None]}


@pytest.mark.parametrize(
    ("fields", "rows", "ids"),
    [
        ('vocab_list: ["abc", "efg"]', 4, [[2, 3], [], [1], []]),
        ('vocab_list: ["abc", "efg"] default_value: "xyz"', 4, [[2, 3], [0], [1], [0]]),
        ('vocab_list: ["abc", "efg"] default_value: "efg"', 4, [[2, 3], [3], [1], [3]]),
        (
            'vocab_list: ["xyz", "abc", "efg"] default_bucketize_value: 0',
            3,
            [[1, 2], [], [0], []],
        ),
        (
            'vocab_list: ["xyz", "abc", "efg"] default_bucketize_value: 2 default_value: "xyz"',
            3,
            [[1, 2], [0], [2], [0]],
        ),
        (
            'vocab_dict { key: "abc" value: 2 } vocab_dict { key: "efg" value: 5 }',
            6,
            [[2, 5], [], [1], []],
        ),
        (
            'vocab_dict { key: "abc" value: 1 } vocab_dict { key: "z" value: 0 } '
            'default_bucketize_value: 3 default_value: "z"',
            4,
            [[1, 3], [0], [3], [0]],
        ),
    ],
)
def test_numbering(fields: str, rows: int, ids: list[list[int]]) -> None:
    text = one("id_feature", f"{EXPRESSION} {fields}")
    table = create_features(make_config(text))[0].table
    assert table is not None and table.num_embeddings == rows
    assert bags(parse(text, COLUMN).ids["f"]) == ids


def test_integers_match_words_of_digits() -> None:
    text = one("id_feature", f'{EXPRESSION} vocab_list: ["10", "-3", "7"]')
    columns = {"c": [10, 7, -3, 11, None] * 300}
    assert bags(parse(text, columns).ids["f"])[:5] == [[2], [4], [3], [1], []]


def test_vocabulary_files(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("a\nb\nc\n")
    (tmp_path / "pairs").write_text("a 5\nb 0\n")
    (tmp_path / "empty").write_text("\n")
    assert read_vocabulary(tmp_path / "words") == {"a": 0, "b": 1, "c": 2}
    assert read_vocabulary(tmp_path / "pairs") == {"a": 5, "b": 0}
    with pytest.raises(UserError, match="no words"):
        read_vocabulary(tmp_path / "empty")
    with pytest.raises(UserError, match="no file"):
        read_vocabulary(tmp_path / "absent")
    fields = f'{EXPRESSION} vocab_file: "pairs" asset_dir: "{tmp_path}"'
    text = one("id_feature", f"{fields} default_bucketize_value: 9")
    assert bags(parse(text, {"c": ["b", "a", "z"]}).ids["f"]) == [[0], [5], [9]]
    table = create_features(make_config(text))[0].table
    assert table is not None and table.num_embeddings == 10
    with pytest.raises(ConfigError, match="default_bucketize_value"):
        create_features(make_config(one("id_feature", fields)))
