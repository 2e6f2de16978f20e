# SPDX-License-Identifier: Apache-2.0
"""Texts: tokens of a local tokenizer file, and replacement by regular expressions.

Each distinct text of a batch is tokenized once. The `tokenizers` package is an extra, imported when
such a feature is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tzgen.errors import ConfigError, Problem, UserError
from tzgen.features.bags import Bags, ranges, starts_of, text

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_CJK = r"([\x{4e00}-\x{9fff}])"


def load_tokenizer(path: Path, feature: str) -> Any:
    """A `tokenizers.Tokenizer` from a tokenizer.json."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError(
            f"feature {feature!r} needs the package tokenizers. Run: pip install 'tzgen[text]'"
        ) from error
    if not path.is_file():
        raise UserError(
            f"vocab_file {str(path)!r} of {feature!r} is no file. Correct vocab_file or asset_dir."
        )
    return Tokenizer.from_file(str(path))


@dataclass(frozen=True)
class TextNormalization:
    """Steps by their names in the schema; texts of more than `max_length` bytes (0: any) pass."""

    steps: tuple[str, ...] = ()
    max_length: int = 0
    special: tuple[str, ...] = ()

    def __call__(self, texts: pa.Array) -> pa.Array:
        done = texts
        for step in self.steps:
            done = self._step(done, step)
        if not self.max_length:
            return done
        return pc.if_else(pc.greater(pc.binary_length(texts), self.max_length), texts, done)

    def _step(self, texts: pa.Array, step: str) -> pa.Array:
        if step == "TEXT_LOWER2UPPER":
            return pc.utf8_upper(texts)
        if step == "TEXT_UPPER2LOWER":
            return pc.utf8_lower(texts)
        if step == "TEXT_REMOVE_SPACE":
            return pc.replace_substring_regex(texts, r"\s+", "")
        if step == "TEXT_SPLITCHRS":
            return pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, _CJK, r" \1 "))
        if step == "TEXT_FILTER":
            return pc.replace_substring_regex(texts, _any_of(self.special), " ")
        assert step == "TEXT_SBC2DBC", step
        return pa.array([value.translate(_FULL_WIDTH) for value in texts.to_pylist()], pa.string())


def _any_of(characters: Sequence[str]) -> str:
    """A pattern of these characters; without any, of all but letters, digits and spaces."""
    if not characters:
        return r"[^\pL\pN\s]"
    return "[" + "".join(f"\\x{{{ord(c):x}}}" for word in characters for c in word) + "]"


def parse_normalization(message: Any, path: str) -> TextNormalization | None:
    """From a TextNormalizer message; refuses what needs a conversion table that we do not have."""
    names = message.DESCRIPTOR.fields_by_name["norm_options"].enum_type.values_by_number
    steps = [names[option].name for option in message.norm_options]
    default = ["TEXT_UPPER2LOWER", "TEXT_SBC2DBC", "TEXT_CHT2CHS", "TEXT_FILTER"]
    steps = default + steps if steps in ([], ["TEXT_REMOVE_SPACE"]) else steps
    if "TEXT_CHT2CHS" in steps:
        problem = Problem(
            path=f"{path}.text_normalizer.norm_options",
            value="TEXT_CHT2CHS (also in the default)",
            expected="steps without a table of Chinese characters",
            remedy="List the other steps; convert characters where rows are written.",
        )
        raise ConfigError([problem])
    special: tuple[str, ...] = ()
    if message.stop_char_file:
        file = Path(message.stop_char_file)
        if not file.is_file():
            raise UserError(f"{path}.text_normalizer.stop_char_file {str(file)!r} is no file.")
        special = tuple(line for line in file.read_text(encoding="utf-8").splitlines() if line)
    return TextNormalization(tuple(steps), int(message.max_length), special)


@dataclass(frozen=True)
class Tokens:
    """tokenize_feature: token ids, any number a bag.

    `as_sequence` makes each token a step of a sequence; the first `limit` are kept (0: all).
    """

    tokenizer: Any = field(repr=False)
    normalization: TextNormalization | None
    as_sequence: bool = False
    limit: int = 0

    def __call__(self, inputs: Sequence[Bags]) -> Bags:
        bags = inputs[0]
        if bags.lengths is not None and int(bags.lengths.max(initial=0)) > 1:
            raise _several(bags)
        tokens = self.encode(text(bags.values))
        lengths = np.zeros(bags.num_bags, np.int64)
        lengths[bags.all_lengths() > 0] = tokens.all_lengths()
        if not self.as_sequence:
            return Bags(tokens.values, lengths, bags.steps)
        kept = np.minimum(lengths, self.limit) if self.limit else lengths
        return Bags(tokens.values[ranges(starts_of(lengths), kept)], None, kept)

    def encode(self, texts: pa.Array) -> Bags:
        encoded = texts.dictionary_encode()
        distinct = encoded.dictionary
        if self.normalization is not None:
            distinct = self.normalization(distinct)
        found = self.tokenizer.encode_batch(distinct.to_pylist(), add_special_tokens=False)
        ids = [np.asarray(one.ids, np.int64) for one in found]  # distinct texts, not rows
        sizes = np.fromiter((one.size for one in ids), np.int64, len(ids))
        flat = np.concatenate(ids) if ids else np.empty(0, np.int64)
        code = encoded.indices.to_numpy().astype(np.int64)
        lengths = sizes[code]
        return Bags(flat[ranges(starts_of(sizes)[code], lengths)], lengths)


def _several(bags: Bags) -> Exception:
    from tzgen.features.bags import BadValue

    lengths = bags.all_lengths()
    return BadValue(
        found=f"{int(lengths.max())} texts",
        expected="one text to tokenize",
        remedy="Join the texts, or make the feature a sequence.",
        row=bags.row_of_bag(int(lengths.argmax())),
    )


@dataclass(frozen=True)
class Replacement:
    """regex_replace_feature: `pattern` is one RE2 expression."""

    pattern: str
    replacement: str
    replace_all: bool

    def __call__(self, inputs: Sequence[Bags]) -> Bags:
        bags = inputs[0]
        limit = None if self.replace_all else 1
        done = pc.replace_substring_regex(
            text(bags.values), self.pattern, self.replacement, max_replacements=limit
        )
        return Bags(done, bags.lengths, bags.steps, bags.weights, bags.cut)
