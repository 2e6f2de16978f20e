# SPDX-License-Identifier: Apache-2.0
"""Text encoders by name; what is missing is named."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tzgen.errors import UserError
from tzgen.sid.encoders import make_encoder

from .test_tfidf import cosine


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="expected one of tfidf_svd"):
        make_encoder("bert", dim=4, path=None)
    with pytest.raises(UserError, match="leave it out"):
        make_encoder("wordllama", dim=256, path=tmp_path)
    with pytest.raises(UserError, match=r"holds no encoder \(no manifest.json\)"):
        make_encoder("tfidf_svd", dim=4, path=tmp_path)
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
