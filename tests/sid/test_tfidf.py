# SPDX-License-Identifier: Apache-2.0
"""tf-idf against scikit-learn; a stored encoder says what the fitted one says, or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from catalogues import WORDS
from sklearn.feature_extraction.text import TfidfVectorizer

from tzgen.errors import UserError
from tzgen.sid.tfidf import TfidfSvd, stored_manifest


def texts(n: int = 80, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS[(i % 3) * 4 : (i % 3) * 4 + 4], 6)) for i in range(n)]


def cosine(x: np.ndarray) -> np.ndarray:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T


def test_full_rank_gives_the_cosines_of_tfidf() -> None:
    """With as many dimensions as texts nothing is lost, so cosines are those of the matrix."""
    some = texts(30)
    encoder = TfidfSvd(60)
    encoder.fit(some)
    vectors = encoder(some)
    assert vectors.shape == (30, 60) and vectors.dtype == np.float32
    theirs = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
    expected = theirs.fit_transform(some).toarray()
    np.testing.assert_allclose(cosine(vectors), cosine(expected), atol=0.05)


def test_alike_texts_are_near_and_the_fit_is_repeatable() -> None:
    some, found = texts(), []
    for _ in range(2):
        encoder = TfidfSvd(8, seed=3)
        encoder.fit(some)
        found.append(encoder(some))
    np.testing.assert_array_equal(found[0], found[1])
    near = cosine(found[0])
    same = np.equal.outer(np.arange(80) % 3, np.arange(80) % 3)
    assert near[same].mean() > near[~same].mean() + 0.4


def test_empty_texts_are_zero_and_unicode_is_words() -> None:
    encoder = TfidfSvd(4)
    encoder.fit([*texts(20), "", "Crème brûlée", "Crème brûlée"])
    vectors = encoder(["", "crème BRÛLÉE", "Crème brûlée"])
    assert np.all(vectors[0] == 0)
    np.testing.assert_array_equal(vectors[1], vectors[2])


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(UserError, match="too few"):
        TfidfSvd(4).fit(["one"])


def test_a_stored_encoder_says_what_the_fitted_one_said(tmp_path: Path) -> None:
    """In other company too, for texts with unknown words, and where texts are fewer than `dim`."""
    fitted, some = TfidfSvd(40), [*texts(20), "of its own", ""]
    fitted.fit(some)
    fitted.save(tmp_path / "e", {"seed": 0})
    loaded = TfidfSvd.load(tmp_path / "e")
    np.testing.assert_array_equal(loaded(some), fitted(some))
    np.testing.assert_array_equal(loaded(some[3:7]), fitted(some)[3:7])
    new = ["red polish zzz", "zzz yyy", "polish red"]
    np.testing.assert_array_equal(loaded(new), fitted(new))
    assert not loaded(new)[1].any() and loaded(new)[2].any()
    assert loaded.dim == 40 and stored_manifest(tmp_path / "e")["fitted_on"] == {"seed": 0}
    assert {p.name for p in (tmp_path / "e").iterdir()} == {"encoder.safetensors", "manifest.json"}


def test_what_is_no_encoder_or_damaged_is_named(tmp_path: Path) -> None:
    fitted, folder = TfidfSvd(4), tmp_path / "e"
    with pytest.raises(UserError, match=r"e does not exist: .*<output>-encoder"):
        TfidfSvd.load(folder)
    fitted.fit(texts(20))
    fitted.save(folder, {})
    with pytest.raises(UserError, match=r"--dim 5: the encoder in .* vectors of 4; give --dim 4"):
        stored_manifest(folder, dim=5)
    manifest, whole = folder / "manifest.json", (folder / "manifest.json").read_text()
    manifest.write_text(whole[:40])
    with pytest.raises(UserError, match=r"manifest.json is damaged .*embed all items anew"):
        TfidfSvd.load(folder)
    for change in ({"encoder": "wordllama"}, {"schema_version": 2}):
        manifest.write_text(json.dumps(json.loads(whole) | change))
        with pytest.raises(UserError, match="give the folder of such an encoder"):
            TfidfSvd.load(folder)
    manifest.write_text(whole)
    tensors = folder / "encoder.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"encoder.safetensors is missing or damaged"):
        TfidfSvd.load(folder)
