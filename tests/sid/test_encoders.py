# SPDX-License-Identifier: Apache-2.0
"""Text encoders: tf-idf against scikit-learn, and what is missing is named."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from tzgen.errors import UserError
from tzgen.sid.encoders import make_encoder

WORDS = [
    "red",
    "blue",
    "nail",
    "polish",
    "cream",
    "shampoo",
    "brush",
    "hair",
    "eye",
    "liner",
    "soft",
    "strong",
]


def texts(n: int = 80, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS[(i % 3) * 4 : (i % 3) * 4 + 4], 6)) for i in range(n)]


def cosine(x: np.ndarray) -> np.ndarray:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T


def test_full_rank_gives_the_cosines_of_tfidf() -> None:
    """With as many dimensions as texts nothing is lost, so cosines are those of the matrix."""
    some = texts(30)
    encoder = make_encoder("tfidf_svd", dim=60, path=None)
    encoder.fit(some)
    vectors = encoder(some)
    assert vectors.shape == (30, 60) and vectors.dtype == np.float32
    theirs = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
    expected = theirs.fit_transform(some).toarray()
    np.testing.assert_allclose(cosine(vectors), cosine(expected), atol=0.05)


def test_alike_texts_are_near_and_the_fit_is_repeatable() -> None:
    some, found = texts(), []
    for _ in range(2):
        encoder = make_encoder("tfidf_svd", dim=8, path=None, seed=3)
        encoder.fit(some)
        found.append(encoder(some))
    np.testing.assert_array_equal(found[0], found[1])
    near = cosine(found[0])
    same = np.equal.outer(np.arange(80) % 3, np.arange(80) % 3)
    assert near[same].mean() > near[~same].mean() + 0.4


def test_empty_texts_are_zero_and_unicode_is_words() -> None:
    encoder = make_encoder("tfidf_svd", dim=4, path=None)
    encoder.fit([*texts(20), "", "Crème brûlée", "Crème brûlée"])
    vectors = encoder(["", "crème BRÛLÉE", "Crème brûlée"])
    assert np.all(vectors[0] == 0)
    np.testing.assert_array_equal(vectors[1], vectors[2])


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="expected one of tfidf_svd"):
        make_encoder("bert", dim=4, path=None)
    with pytest.raises(UserError, match="too few"):
        make_encoder("tfidf_svd", dim=4, path=None).fit(["one"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tzgen\[text\]"):
        make_encoder("wordllama", dim=256, path=None)
    with pytest.raises(UserError, match="sentence-transformers"):
        make_encoder("sentence_transformers", dim=1, path=tmp_path)


def test_wordllama_brings_its_weights() -> None:
    some = ["nail polish", "nail lacquer", "tax law"]
    near = cosine(make_encoder("wordllama", dim=256, path=None)(some))
    assert near[0, 1] > near[0, 2] + 0.2
    with pytest.raises(UserError, match="its wheel has 256"):
        make_encoder("wordllama", dim=100, path=None)
