# SPDX-License-Identifier: Apache-2.0
"""tokenize_feature with a tokenizer built here; normalisation; regex_replace_feature."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tzgen.errors import ConfigError, UserError
from tzgen.features import create_features

from .feature_world import bags, make_config, one, parse

WORDS = {"[UNK]": 0, "red": 1, "shoe": 2, "blue": 3, "a": 4}


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return f'expression: "item:t" vocab_file: "{path}" embedding_dim: 4'


TEXTS = {"t": ["red shoe", "", "blue hat", None, "red shoe"]}


def test_tokens_of_a_text(fields: str) -> None:
    text = one("tokenize_feature", fields)
    assert bags(parse(text, TEXTS).ids["f"]) == [[1, 2], [], [3, 0], [], [1, 2]]
    table = create_features(make_config(text))[0].table
    assert table is not None and table.num_embeddings == len(WORDS)


def test_default_is_a_text(fields: str) -> None:
    text = one("tokenize_feature", fields + ' default_value: "blue shoe"')
    assert bags(parse(text, TEXTS).ids["f"]) == [[1, 2], [3, 2], [3, 0], [3, 2], [1, 2]]


def test_steps_and_tokens_as_steps(fields: str) -> None:
    ids = parse(one("sequence_tokenize_feature", fields), {"t": ["red shoe;blue", "a"]}).ids["f"]
    assert bags(ids) == [[1, 2], [3], [4]]
    assert ids.seq_lengths is not None and ids.seq_lengths.tolist() == [2, 1]
    text = one("tokenize_feature", fields + " tokens_as_sequence: true sequence_length: 1")
    ids = parse(text, TEXTS).ids["f"]
    assert ids.values.tolist() == [1, 3, 1]
    assert ids.seq_lengths is not None and ids.seq_lengths.tolist() == [1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("steps", "texts"),
    [
        ("TEXT_UPPER2LOWER", "RED Shoe"),
        ("TEXT_UPPER2LOWER, TEXT_SBC2DBC", "ＲＥＤ　ｓｈｏｅ"),
        ("TEXT_FILTER", "red*/shoe"),
    ],
)
def test_normalisation(fields: str, steps: str, texts: str) -> None:
    text = one("tokenize_feature", f"{fields} text_normalizer {{ norm_options: [{steps}] }}")
    assert bags(parse(text, {"t": [texts]}).ids["f"]) == [[1, 2]]


def test_long_texts_pass_unchanged_and_tables_of_characters_are_refused(fields: str) -> None:
    normal = "text_normalizer { norm_options: TEXT_UPPER2LOWER max_length: 3 }"
    columns = {"t": ["RED", "RED RED"]}
    assert bags(parse(one("tokenize_feature", f"{fields} {normal}"), columns).ids["f"]) == [
        [1],
        [0, 0],
    ]
    with pytest.raises(ConfigError, match="TEXT_CHT2CHS"):
        parse(one("tokenize_feature", f"{fields} text_normalizer {{ }}"), columns)
    with pytest.raises(ConfigError, match="sentencepiece"):
        parse(one("tokenize_feature", f'{fields} tokenizer_type: "sentencepiece"'), columns)


def test_the_extra_is_named(fields: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"tzgen\[text\]"):
        create_features(make_config(one("tokenize_feature", fields)))


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    fields = f'expression: "item:t" vocab_file: "{tmp_path}/no.json" embedding_dim: 4'
    with pytest.raises(UserError, match=r"no\.json"):
        create_features(make_config(one("tokenize_feature", fields)))


@pytest.mark.parametrize(
    ("extra", "value", "wanted"),
    [
        ("", "ax1b2", 2),
        ("", "aXb", 3),
        ("replace_all: false", "ax1b2", 1),
        ('replacement: "-"', "axb2", 4),
        ("icase: true", "aXb", 2),
    ],
)
def test_regex_replace(extra: str, value: str, wanted: int) -> None:
    fields = f"""expression: "item:t" regex_pattern: ["x", "[0-9]+"] embedding_dim: 4 {extra}
      vocab_list: ["ab", "aXb", "a-b-"]"""
    text = one("regex_replace_feature", fields)
    assert bags(parse(text, {"t": [value, None]}).ids["f"]) == [[wanted], []]
