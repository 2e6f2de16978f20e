# SPDX-License-Identifier: Apache-2.0
"""The published table of semantic IDs: a folder a generation, whole or absent, never changed.

    <root>/<generation>/
      item_to_sid/part-0.parquet    item_id, origin_codebook, codebook, index, offset_codebook
      sid_to_items/part-0.parquet   codebook, itemids (in the order of `index`)
      delta_item_to_sid/, delta_sid_to_items/     of a generation that was appended: what is new
      trie.safetensors              arrays of decoding.Trie over `codebook`; item = row above
      manifest.json                 last: the commit mark

Names, columns and manifest keys are TorchEasyRec's, whose bundles open here too; ours add the trie,
checksums and hashes. `item_to_sid` is sorted by item id. `origin_codebook` is what the tokenizer
said, `codebook` the ID after collisions were resolved (one code longer under the policy suffix),
`index` the item's place among those of its ID, `offset_codebook` the ID as tokens of one
vocabulary.

`sid_hash` digests items and codes. `lineage` lists the hashes of the generations this one was
appended to, oldest first, and its own last: an append never moves a published ID, so a model
trained on any of them may be served with this one, and with no other.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors.torch import load_file, save_file

from tzgen.decoding.trie import Trie
from tzgen.errors import UserError
from tzgen.sid.folder import checksum, checksums, staged, write_manifest
from tzgen.sid.rows import equal_lists, lists
from tzgen.sid.space import Ints, SidSpace, group_sizes
from tzgen.sid.table import SidTable

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
TRIE = "trie.safetensors"
NEEDED = ("bundle_uuid", "codebook", "capacity", "max_observed_items_per_sid", "artifacts")


@dataclass(frozen=True)
class Bundle:
    """An opened generation."""

    path: Path
    manifest: Mapping[str, Any]
    table: SidTable

    @property
    def lineage(self) -> tuple[str, ...]:
        return tuple(self.manifest.get("lineage", [self.table.sid_hash]))

    def require_descends_from(self, sid_hash: str, whose: str) -> None:
        """Refuse a bundle in which IDs known to `whose` may mean other items."""
        if sid_hash not in self.lineage:
            raise UserError(
                f"{whose} was made with the semantic IDs {sid_hash[:12]}; the bundle {self.path} "
                f"holds {self.table.sid_hash[:12]} and was appended to "
                f"{[h[:12] for h in self.lineage[:-1]] or 'nothing'}: give the bundle it was made "
                "with, or one that was appended to it"
            )


def require_new(root: Path, generation: str) -> Path:
    """The folder of a generation that is to be; UserError when it exists, or is no plain name."""
    if Path(generation).name != generation or generation.startswith("."):
        raise UserError(f"--generation {generation!r}: expected a plain name, as of a folder")
    target = root / generation
    if target.exists():
        raise UserError(
            f"{target} exists: a published generation is never changed. Name another --generation"
        )
    return target


def write_bundle(
    root: Path,
    generation: str,
    table: SidTable,
    *,
    policy: str,
    capacity: int,
    notes: Mapping[str, Any],
    appended: tuple[Bundle, SidTable] | None = None,
) -> Bundle:
    """Publish `table` as `<root>/<generation>`; `appended`: (the generation before, what is new).

    notes: where the codes came from (input_hash, codebook_hash, config_hash, versions, ...).
    Raises UserError when the generation exists.
    """
    target = require_new(root, generation)
    with staged(target) as folder:
        artifacts = {
            "item_to_sid": _write(folder, "item_to_sid", _item_rows(table)),
            "sid_to_items": _write(folder, "sid_to_items", _sid_rows(table)),
        }
        lineage = [table.sid_hash]
        if appended is not None:
            before, new = appended
            lineage = [*before.lineage, table.sid_hash]
            touched = np.isin(table.space.keys(table.codes), _keys_in(table, new))
            rows = _item_rows(new)
            artifacts["delta_item_to_sid"] = _write(folder, "delta_item_to_sid", rows)
            rows = _sid_rows(_subset(table, touched))
            artifacts["delta_sid_to_items"] = _write(folder, "delta_sid_to_items", rows)
        save_file(
            {name: array.contiguous() for name, array in table.trie.to_arrays().items()},
            folder / TRIE,
        )
        body = {
            "schema_version": SCHEMA_VERSION,
            "bundle_uuid": uuid.uuid4().hex,
            "since_bundle_uuid": appended[0].manifest["bundle_uuid"] if appended else None,
            "codebook": list(table.space.codebook),
            "capacity": capacity,
            "max_observed_items_per_sid": int(group_sizes(table.space.keys(table.codes)).max()),
            "item_id_type": str(table.item_id.type),
            "artifacts": artifacts,
            "policy": policy,
            "sid_hash": table.sid_hash,
            "lineage": lineage,
            **notes,
            "checksums": checksums(folder),
        }
        write_manifest(folder / MANIFEST, {k: v for k, v in body.items() if v is not None})
    return open_bundle(target)


def open_bundle(path: Path) -> Bundle:
    """Open and check a generation, ours or TorchEasyRec's.

    Raises UserError naming the path when it is absent, unfinished, damaged, or not a generation.
    """
    manifest = _read_manifest(path)
    for name, digest in manifest.get("checksums", {}).items():
        if not (path / name).is_file() or checksum(path / name) != digest:
            raise UserError(f"{path / name} is missing or damaged: publish the bundle again")
    entry = manifest["artifacts"].get("item_to_sid", {})
    if entry.get("save_type") != "parquet":
        raise UserError(
            f"{path}: item_to_sid is stored as {entry.get('save_type')!r}; expected parquet"
        )
    folder = path / "item_to_sid"
    if not folder.is_dir():
        raise UserError(f"{folder} is missing, though the manifest lists it: copy the whole folder")
    rows = pq.read_table(folder, columns=["item_id", "origin_codebook", "codebook", "index"])
    table = _table_of(rows, SidSpace(tuple(manifest["codebook"])), path)
    if manifest.get("sid_hash", table.sid_hash) != table.sid_hash:
        raise UserError(f"{path}: items and codes are not those of the manifest: publish it again")
    trie = path / TRIE
    if trie.is_file():
        table.__dict__["trie"] = Trie.from_arrays(load_file(trie))
    return Bundle(path, manifest, table)


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise UserError(
            f"{path} does not exist: a bundle of semantic IDs is the folder of a generation, "
            "<bundle_path>/<generation>, which python -m tzgen.sid fit or bundle publishes"
        )
    file = path / MANIFEST
    if not file.is_file():
        inside = sorted(p.parent.name for p in path.glob(f"*/{MANIFEST}"))
        hint = f"it holds the generations {', '.join(inside)}: name one" if inside else (
            "the manifest is written last, so this one was never finished"
        )  # fmt: skip
        raise UserError(f"{path} is no bundle of semantic IDs (no {MANIFEST}): {hint}")
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is damaged ({error}): publish the bundle again") from None
    missing = [key for key in NEEDED if key not in manifest]
    if missing:
        raise UserError(f"{file} lacks {', '.join(missing)}: it is no manifest of a bundle")
    if manifest.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise UserError(
            f"{file}: schema_version {manifest['schema_version']}; this version reads "
            f"{SCHEMA_VERSION}"
        )
    return manifest


def _table_of(rows: pa.Table, space: SidSpace, path: Path) -> SidTable:
    """Rows in any order to a table sorted by item id."""
    order = pc.sort_indices(rows, [("item_id", "ascending")])
    rows = rows.take(order).combine_chunks()
    codes = _matrix(rows["codebook"], path)
    space.check(codes)
    item_id = rows["item_id"].combine_chunks()
    ids = item_id if isinstance(item_id, pa.Array) else pa.concat_arrays(item_id.chunks)
    index = np.asarray(rows["index"].to_numpy(), dtype=np.int64)
    return SidTable(ids, _matrix(rows["origin_codebook"], path), codes, index, space)


def _matrix(column: pa.ChunkedArray, path: Path) -> Ints:
    """A list column as int64 [N, S]; TorchEasyRec's CSV form "1,2,3" is refused."""
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise UserError(
            f"{path}: a code column of item_to_sid is {column.type}; expected a list of integers. "
            "Publish it with parquet as save_type"
        )
    lengths = pc.list_value_length(column).to_numpy()
    if len(lengths) and (lengths != lengths[0]).any():
        row = int((lengths != lengths[0]).argmax())
        raise UserError(f"{path}: row {row} of item_to_sid has {lengths[row]} codes, others "
                        f"{lengths[0]}")  # fmt: skip
    flat = pc.list_flatten(column).to_numpy()
    return np.array(flat, dtype=np.int64).reshape(len(lengths), -1)  # a copy: writable


def _item_rows(table: SidTable) -> pa.Table:
    return pa.table(
        {
            "item_id": table.item_id,
            "origin_codebook": equal_lists(table.origin),
            "codebook": equal_lists(table.codes),
            "index": table.slot,
            "offset_codebook": equal_lists(table.codes + table.space.offsets),
        }
    )


def _sid_rows(table: SidTable) -> pa.Table:
    """One row an ID, in the order of the codes."""
    keys = table.space.keys(table.codes)
    order = np.lexsort((table.slot, keys))
    starts = np.flatnonzero(np.concatenate([[True], keys[order][1:] != keys[order][:-1]]))
    items = lists(np.append(starts, len(order)), table.item_id.take(pa.array(order)))
    return pa.table({"codebook": equal_lists(table.codes[order[starts]]), "itemids": items})


def _subset(table: SidTable, keep: np.ndarray[Any, np.dtype[np.bool_]]) -> SidTable:
    rows = np.flatnonzero(keep)
    return SidTable(
        table.item_id.take(pa.array(rows)),
        table.origin[rows],
        table.codes[rows],
        table.slot[rows],
        table.space,
    )


def _keys_in(table: SidTable, new: SidTable) -> Ints:
    """Keys, as `table`'s, of the IDs that hold an item of `new`."""
    keys = table.space.keys(table.codes)
    return keys[table.rows_of(new.item_id)]


def _write(folder: Path, name: str, rows: pa.Table) -> dict[str, Any]:
    (folder / name).mkdir()
    pq.write_table(rows, folder / name / "part-0.parquet", compression="zstd")
    return {"save_type": "parquet", "rows": rows.num_rows, "location": name}
