# SPDX-License-Identifier: Apache-2.0
"""The text encoder tfidf_svd: words and word pairs, tf-idf, truncated SVD; and what it learnt.

Words are hashed into 2^18 columns, so memory does not grow with the vocabulary; idf and the
projection are fitted by a randomised SVD. A fitted encoder is a folder:

    encoder.safetensors   idf [2^18], columns int64 [C] that the fit met, basis [C, dim] of those
    manifest.json         last: what it is, what it was fitted on, checksums

Words that the fit did not meet point nowhere; they only take from the length of the others.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from tzgen.errors import UserError
from tzgen.sid.folder import checksum, checksums, staged, write_manifest

Floats = NDArray[np.float32]
NAME, SCHEMA_VERSION = "tfidf_svd", 1
MANIFEST, TENSORS = "manifest.json", "encoder.safetensors"
COLUMNS = 1 << 18
WORD = re.compile(r"[^\W_]+")
AGAIN = "copy the folder again, or embed all items anew"


class TfidfSvd:
    """Sublinear tf, smoothed idf, unit length, then the first `dim` right singular vectors."""

    def __init__(self, dim: int, *, seed: int = 0) -> None:
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
        basis = torch.nn.functional.pad(basis[:, :rank], (0, self.dim - rank))
        self._basis = basis.masked_fill(torch.from_numpy(seen == 0).unsqueeze(1), 0.0)

    def __call__(self, texts: Sequence[str]) -> Floats:
        assert self._basis is not None, "fit comes first"
        matrix = self._matrix([_counts(text) for text in texts])
        return (matrix @ self._basis).numpy()

    def save(self, folder: Path, fitted_on: Mapping[str, Any]) -> None:
        """Write the folder of the module docstring, whole or not at all."""
        assert self._idf is not None and self._basis is not None, "fit comes first"
        columns = self._basis.any(dim=1).nonzero().flatten()
        tensors = {"idf": self._idf, "columns": columns, "basis": self._basis[columns]}
        with staged(folder) as temporary:
            save_file(tensors, temporary / TENSORS)
            body = {
                "schema_version": SCHEMA_VERSION,
                "encoder": NAME,
                "dim": self.dim,
                "fitted_on": dict(fitted_on),
                "checksums": checksums(temporary),
            }
            write_manifest(temporary / MANIFEST, body)

    @classmethod
    def load(cls, folder: Path) -> TfidfSvd:
        """What `save` wrote; UserError as of `stored_manifest`, or where a file is damaged."""
        manifest = stored_manifest(folder)
        path = folder / TENSORS
        if not path.is_file() or checksum(path) != manifest["checksums"].get(TENSORS):
            raise UserError(f"{path} is missing or damaged: {AGAIN}")
        found, tensors = cls(int(manifest["dim"])), load_file(path)
        found._idf = tensors["idf"]
        found._basis = torch.zeros(COLUMNS, found.dim)
        found._basis[tensors["columns"]] = tensors["basis"]
        return found

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


def stored_manifest(folder: Path, *, dim: int | None = None) -> dict[str, Any]:
    """What the manifest of a stored encoder says; UserError naming the folder where it is none, is
    damaged, or makes vectors of another width than `dim`."""
    path = folder / MANIFEST
    if not path.is_file():
        what = "holds no encoder (no manifest.json)" if folder.is_dir() else "does not exist"
        raise UserError(
            f"{folder} {what}: give as --encoder_path the folder that embed left beside its "
            "vectors, <output>-encoder"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged ({error}): {AGAIN}") from None
    found = manifest.get("encoder")
    if found != NAME or manifest.get("schema_version") != SCHEMA_VERSION:
        shown = f"version {manifest.get('schema_version')} of {found!r}"
        raise UserError(
            f"{folder} holds {shown}; --encoder {NAME} reads version {SCHEMA_VERSION} of its own: "
            "give the folder of such an encoder"
        )
    if dim is not None and manifest["dim"] != dim:
        raise UserError(
            f"--dim {dim}: the encoder in {folder} makes vectors of {manifest['dim']}; give --dim "
            f"{manifest['dim']}"
        )
    return manifest


def _counts(text: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Columns of the words and word pairs of a text, ascending, and how often each occurs."""
    words = [word.lower() for word in WORD.findall(text)]
    pairs = [f"{a} {b}" for a, b in pairwise(words)]
    hashed = np.array(
        [zlib.crc32(word.encode()) % COLUMNS for word in (*words, *pairs)], dtype=np.int64
    )
    columns, counts = np.unique(hashed, return_counts=True)
    return columns, counts.astype(np.float32)
