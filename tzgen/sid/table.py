# SPDX-License-Identifier: Apache-2.0
"""Items and their semantic IDs in memory. N items, S levels.

Rows are sorted by item id, so that nothing depends on the order in which a tokenizer's predictions
were read, and row i is item i of the trie.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from tzgen.decoding.trie import Trie
from tzgen.errors import UserError
from tzgen.sid.collisions import Resolution
from tzgen.sid.space import Ints, SidSpace


@dataclass(frozen=True)
class SidTable:
    """Items and their IDs in memory: item_id (sorted, unique), origin and codes int64 [N, S],
    slot int64 [N]."""

    item_id: pa.Array
    origin: Ints
    codes: Ints
    slot: Ints
    space: SidSpace

    def __len__(self) -> int:
        return len(self.item_id)

    @cached_property
    def sid_hash(self) -> str:
        """SHA-256 over item ids and codes, in item order."""
        digest = hashlib.sha256(repr(self.space.codebook).encode())
        if is_text(self.item_id):
            text = self.item_id.cast(pa.large_string())
            _, ends, data = text.buffers()
            offsets = np.frombuffer(ends, np.int64)[text.offset : text.offset + len(text) + 1]
            digest.update((offsets - offsets[0]).tobytes())
            digest.update(memoryview(data)[offsets[0] : offsets[-1]])
        else:
            digest.update(self.item_id.cast(pa.int64()).to_numpy().astype("<i8").tobytes())
        digest.update(np.ascontiguousarray(self.codes, dtype="<i8").tobytes())
        return digest.hexdigest()

    def rows_of(self, item_id: pa.Array) -> Ints:
        """Row of each id in this table, -1 for ids (or nulls) that it does not hold; [n].

        UserError where ids are text and the table's integers, or the other way round.
        """
        if pa.types.is_dictionary(item_id.type):
            item_id = item_id.dictionary_decode()
        if item_id.null_count < len(item_id) and is_text(item_id) != is_text(self.item_id):
            raise UserError(
                f"item ids of type {item_id.type}, where semantic IDs were given to ids of type "
                f"{self.item_id.type}: store both as text or both as integers"
            )
        found = pc.index_in(item_id.cast(self.item_id.type), value_set=self.item_id)
        return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int64)

    @cached_property
    def trie(self) -> Trie:
        """Over `codes`; its item i is row i of this table."""
        return Trie.from_codes(
            torch.from_numpy(self.codes), self.space.codebook, shared_leaves=True
        )


def make_table(item_id: pa.Array, codes: Ints, space: SidSpace) -> SidTable:
    """Sort the tokenizer's codes [N, S] by item id; repeated or null ids are refused by name."""
    if len(item_id) != len(codes):
        raise UserError(f"{len(item_id)} item ids for {len(codes)} codes")
    ordered = sorted_ids(item_id)
    sorted_codes = codes[pc.sort_indices(item_id).to_numpy()]
    space.check(sorted_codes, ordered.to_numpy(zero_copy_only=False))
    return SidTable(ordered, sorted_codes, sorted_codes, np.zeros(len(codes), np.int64), space)


def sorted_ids(item_id: pa.Array) -> pa.Array:
    """The ids of a catalogue in order; none, null, repeated ones and other types are refused."""
    if item_id.null_count:
        row = int(np.flatnonzero(item_id.is_null().to_numpy(zero_copy_only=False))[0])
        raise UserError(f"row {row} has no item id (null): every item needs one")
    if not len(item_id):
        raise UserError("the catalogue is empty: there is no item to give codes to")
    if not (is_text(item_id) or pa.types.is_integer(item_id.type)):
        raise UserError(f"item ids of type {item_id.type}: expected integers or text")
    ordered = item_id.take(pc.sort_indices(item_id))
    if len(ordered) > 1:
        same = pc.equal(ordered[1:], ordered[:-1]).to_numpy(zero_copy_only=False)
        if same.any():
            name = ordered[int(same.argmax())].as_py()
            raise UserError(
                f"item {name!r} has more than one row ({int(same.sum())} rows repeat an item): an "
                "item gets one ID. Remove the repeated rows"
            )
    return ordered


def resolved_table(table: SidTable, resolution: Resolution) -> SidTable:
    """`table` (of `make_table`) with the IDs of `resolution`, made in its order."""
    return SidTable(
        table.item_id, table.origin, resolution.codes, resolution.slot, resolution.space
    )


def merged_table(published: SidTable, new: SidTable) -> SidTable:
    """Both, sorted by item id. The two must share the space and no item."""
    ids = pa.concat_arrays([published.item_id, new.item_id.cast(published.item_id.type)])
    order = pc.sort_indices(ids).to_numpy()

    def both(name: str) -> Ints:
        parts = [getattr(published, name), getattr(new, name)]
        joined: Ints = np.concatenate(parts)[order]
        return joined

    return SidTable(
        ids.take(pa.array(order)), both("origin"), both("codes"), both("slot"), published.space
    )


def is_text(array: pa.Array) -> bool:
    return bool(pa.types.is_string(array.type) or pa.types.is_large_string(array.type))
