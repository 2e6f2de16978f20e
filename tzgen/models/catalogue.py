# SPDX-License-Identifier: Apache-2.0
"""The items that a generator knows: ids, codes and trie of a bundle, and which bundle that was.

N items, sorted by id; S levels of codes; B rows, E events.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tzgen.decoding import Trie
from tzgen.embeddings import Ragged
from tzgen.errors import UserError
from tzgen.ops import jagged
from tzgen.sid.bundle import open_bundle
from tzgen.sid.cold import cold_items
from tzgen.sid.table import is_text

NOBODY, UNKNOWN = -2, -1  # of targets: the row names none; it names one that the bundle lacks


class Catalogue(nn.Module):
    """A generation of semantic IDs on the model's device.

    Everything comes from the bundle when the model is built. Stored with the weights is one thing,
    `trained_with` uint8 [32]: the hash of the IDs that they were trained on.
    """

    ids: Tensor
    codes: Tensor
    offsets: Tensor
    trained_with: Tensor

    def __init__(self, bundle_path: str) -> None:
        super().__init__()
        self.bundle = open_bundle(Path(bundle_path))
        table = self.bundle.table
        if is_text(table.item_id):
            raise UserError(
                f"{bundle_path} has item ids of type {table.item_id.type}: a generator reads "
                "integers. Number the items in a column of their own, keep the names beside it, "
                "and publish the bundle with --item_id_field naming the number"
            )
        self.sizes = table.space.codebook
        for name, value in (
            ("ids", np.array(table.item_id.to_numpy(zero_copy_only=False), dtype=np.int64)),
            ("codes", np.array(table.codes, dtype=np.int64)),
            ("offsets", np.array(table.space.offsets, dtype=np.int64)),
        ):
            self.register_buffer(name, torch.from_numpy(value), persistent=False)
        digest = torch.tensor(list(bytes.fromhex(table.sid_hash)), dtype=torch.uint8)
        self.register_buffer("trained_with", digest)
        self._trie: Trie = table.trie
        self._cold: Tensor | None = None
        self._checked = False

    def __len__(self) -> int:
        return self.ids.size(0)

    @property
    def has_suffix(self) -> bool:
        """Whether the last code only tells items of one ID apart."""
        return bool(self.bundle.manifest.get("policy") == "suffix")

    @property
    def trie(self) -> Trie:
        """On the device of the buffers."""
        if self._trie.device != self.ids.device:
            self._trie = self._trie.to(self.ids.device)
        return self._trie

    def require_own_bundle(self) -> None:
        """Refuse weights that were trained on IDs which may mean other items here; asked once."""
        if not self._checked:
            trained = bytes(self.trained_with.tolist()).hex()
            self.bundle.require_descends_from(trained, "the model")
            self._checked = True

    def cold(self, config: Any) -> Tensor:
        """bool [N] by the config's cold_items, read when first asked for."""
        if self._cold is None:
            found = cold_items(
                self.bundle.table,
                config.input_path,
                item_id_field=config.item_id_field,
                count_field=config.count_field,
                max_count=config.max_count,
            )
            self._cold = torch.from_numpy(found).to(self.ids.device)
        return self._cold

    def rows_of(self, item_ids: Tensor) -> Tensor:
        """int64 [...] -> the item's row, UNKNOWN where the bundle has no such item."""
        at = torch.searchsorted(self.ids, item_ids).clamp_max(len(self) - 1)
        return torch.where(self.ids[at] == item_ids, at, UNKNOWN)

    def tokens(self, rows: Tensor) -> Tensor:
        """int64 [...] rows -> [..., S] codes in one vocabulary of all levels."""
        return self.codes[rows] + self.offsets


@dataclass(frozen=True)
class Sequences:
    """What a generator reads of B rows.

    rows int64 [E] and lengths int64 [B]: the newest items of each history that the bundle knows,
    oldest first. target int64 [B]: row of the next item, UNKNOWN or NOBODY. seen int64 [B, M]: rows
    of all items of the history, -1 elsewhere. unknown int64 [B]: history items that were dropped.
    start [B, W] or None: features of the user. max_items: at least the longest, a host number.
    """

    rows: Tensor
    lengths: Tensor
    target: Tensor
    seen: Tensor
    unknown: Tensor
    start: Tensor | None
    max_items: int

    @property
    def num_rows(self) -> int:
        return self.lengths.size(0)


def read_sequences(
    catalogue: Catalogue,
    history: Ragged,
    target: Ragged | None,
    start: Tensor | None,
    *,
    max_items: int,
) -> Sequences:
    """From item ids int64, oldest first, at most one target a row.

    How many events are kept is known to the device alone: one wait a batch.
    """
    rows = catalogue.rows_of(history.values)
    row, place = jagged.place_index(history.lengths, rows.size(0))
    known = rows >= 0
    counts = torch.zeros_like(history.lengths).index_add(0, row, known.to(torch.int64))
    after = torch.cumsum(counts, 0).index_select(0, row) - torch.cumsum(known, 0)
    kept = torch.nonzero(known & (after < max_items)).flatten()
    seen = rows.new_full((history.lengths.size(0), history.max_len), -1)
    return Sequences(
        rows=rows.index_select(0, kept),
        lengths=counts.clamp(max=max_items),
        target=_targets(catalogue, target, history.lengths),
        seen=seen.index_put((row, place), rows),
        unknown=history.lengths - counts,
        start=start,
        max_items=min(max_items, history.max_len),
    )


def _targets(catalogue: Catalogue, target: Ragged | None, lengths: Tensor) -> Tensor:
    found = torch.full_like(lengths, NOBODY)
    if target is None:
        return found
    if target.max_len > 1:
        raise UserError(
            f"group 'target': a row has {target.max_len} items; expected one, the next item. Put "
            "the others into the history, or set data_config.sliding_window"
        )
    row, _ = jagged.place_index(target.lengths, target.values.size(0))
    return found.index_put((row,), catalogue.rows_of(target.values))
