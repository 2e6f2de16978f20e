# SPDX-License-Identifier: Apache-2.0
"""Words to ids, and which bucket function a feature's config asks for.

Without `default_bucketize_value` id 0 is the default value's, 1 is for words that are not known,
and words count from 2; with it the vocabulary is taken verbatim.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.message import Message

from tzgen.config.features import FeatureRef
from tzgen.errors import ConfigError, Problem, UserError
from tzgen.features.bags import I64
from tzgen.features.buckets import Boundaries, Buckets, HashBuckets, IntegerBuckets, TextBuckets
from tzgen.features.hashing import hash_strings

_UNKNOWN = "<OOV>"


class Vocabulary(TextBuckets):
    """Exact look-up by sorted 64-bit hashes; equal hashes are verified by their text."""

    def __init__(self, ids: Mapping[str, int], unknown: int, num_embeddings: int) -> None:
        super().__init__(num_embeddings)
        words = pa.array(list(ids), pa.string())
        hashes = hash_strings(words)
        order = np.argsort(hashes, kind="stable")
        self.words = tuple(ids)
        self._hashes = hashes[order]
        self._words = words.take(pa.array(order))
        self._ids = np.fromiter(ids.values(), np.int64, len(ids))[order]
        self._unknown = unknown
        assert len(set(self._hashes.tolist())) == len(ids), "two words of one 64-bit hash"

    def encode(self, texts: pa.Array) -> I64:
        at = np.searchsorted(self._hashes, hash_strings(texts))
        at[at == self._hashes.size] = 0
        same = pc.equal(self._words.take(pa.array(at)), texts).to_numpy(zero_copy_only=False)
        return np.where(same, self._ids[at], self._unknown)


def field(message: Message, name: str, absent: Any = None) -> Any:
    """The value of a field that not every kind of feature has; `absent` where it is not set."""
    described = message.DESCRIPTOR.fields_by_name.get(name)
    if described is None:
        return absent
    value = getattr(message, name)
    if described.is_repeated:
        return value if len(value) else absent
    if described.has_presence and not message.HasField(name):
        return absent
    return value


def buckets_of(ref: FeatureRef) -> Buckets | None:
    """The bucket function that a feature's fields name, in TorchEasyRec's precedence."""
    message = ref.message
    if rows := field(message, "hash_bucket_size"):
        return HashBuckets(int(rows))
    if rows := field(message, "num_buckets"):
        return IntegerBuckets(int(rows))
    if words := field(message, "vocab_list"):
        return _listed(list(words), message)
    if ids := field(message, "vocab_dict"):
        return _mapped(dict(ids), message)
    if ref.kind != "tokenize_feature" and field(message, "vocab_file"):
        return _from_file(ref)
    if cuts := field(message, "boundaries"):
        return Boundaries(list(cuts))
    return None


def _listed(words: list[str], message: Message) -> Vocabulary:
    unknown = field(message, "default_bucketize_value")
    if unknown is None:
        default = str(message.default_value)  # type: ignore[attr-defined]
        words = [default, _UNKNOWN, *words]  # a word equal to the default keeps its own id
        unknown = 1
    ids = {word: index for index, word in enumerate(words)}
    return Vocabulary(ids, int(unknown), max(len(words), int(unknown) + 1))


def _mapped(ids: dict[str, int], message: Message) -> Vocabulary:
    unknown = field(message, "default_bucketize_value")
    if unknown is None:
        ids[str(message.default_value)] = 0  # type: ignore[attr-defined]
        unknown = 1
    return Vocabulary(ids, int(unknown), max(*ids.values(), int(unknown)) + 1)


def _from_file(ref: FeatureRef) -> Vocabulary:
    unknown = field(ref.message, "default_bucketize_value")
    if unknown is None:
        raise ConfigError(
            [
                Problem(
                    path=f"{ref.path}.default_bucketize_value",
                    value="unset",
                    expected="the id of words that vocab_file does not have",
                    remedy="Set it; a vocabulary file reserves no ids.",
                )
            ]
        )
    ids = read_vocabulary(asset(ref.message, "vocab_file"))
    return Vocabulary(ids, int(unknown), max(*ids.values(), int(unknown)) + 1)


def asset(message: Message, name: str) -> Path:
    """The file that a field names, relative to `asset_dir` where that is set."""
    return Path(field(message, "asset_dir", "")) / str(getattr(message, name))


def read_vocabulary(path: Path) -> dict[str, int]:
    """One word a line (ids are line numbers from 0), or a word, a space and its id a line."""
    if not path.is_file():
        raise UserError(f"vocab_file {str(path)!r} is no file. Correct vocab_file or asset_dir.")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    if not lines:
        raise UserError(f"vocab_file {str(path)!r} has no words. Write one word a line.")
    pairs = [line.rsplit(maxsplit=1) for line in lines]
    if all(len(pair) == 2 and pair[1].isdigit() for pair in pairs):
        return {word: int(index) for word, index in pairs}
    return {word: index for index, word in enumerate(lines)}
