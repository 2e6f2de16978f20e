# SPDX-License-Identifier: Apache-2.0
"""The job behind `python -m tzgen.sid cluster`: user sequences in, codes of all items out.

Writes <output>/part-0.parquet (item_id, codes) and <output>/_manifest.json, which says the
codebook; `bundle` reads both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tzgen.data.readers import ParquetDataset
from tzgen.errors import UserError
from tzgen.sid.cooccurrence import build_graph, cluster_codes
from tzgen.sid.folder import staged, write_manifest
from tzgen.sid.rows import equal_lists, read_all
from tzgen.sid.space import Ints
from tzgen.sid.table import sorted_ids

MANIFEST = "_manifest.json"


def cluster_items(
    sequences: str,
    items: str,
    output: Path,
    *,
    sizes: tuple[int, ...],
    window: int,
    item_id_field: str,
    history_field: str,
    target_field: str,
    seed: int,
) -> tuple[int, ...]:
    """Codes for every row of `items` from the sequences (history, then target if there is that
    column); the codebook. Raises UserError when `output` exists."""
    if output.exists():
        raise UserError(f"--output {output} exists: name another folder, or remove it")
    if window < 1:
        raise UserError(f"--window {window}: expected how far apart a pair may be, >= 1")
    catalogue = ParquetDataset(items)
    ids = read_all(catalogue, [item_id_field])[item_id_field].combine_chunks()
    ordered = sorted_ids(ids)
    if max(sizes) > len(ordered):
        raise UserError(
            f"--codebook {','.join(map(str, sizes))}: a level of {max(sizes)} clusters for "
            f"{len(ordered)} items; expected fewer clusters than items, for example 64,64"
        )
    reader = ParquetDataset(sequences)
    rows = read_all(reader, [history_field], optional=[target_field])
    places, offsets = _packed(rows, history_field, target_field, ordered)
    counts = np.bincount(places, minlength=len(ordered))
    graph = build_graph(places, offsets, len(ordered), window=window)
    codes = cluster_codes(graph, sizes, counts, seed=seed)
    codebook = (*sizes, int(codes[:, -1].max()) + 1)
    job = {
        "sequences": reader.fingerprint,
        "items": catalogue.fingerprint,
        "window": window,
        "seed": seed,
        "codebook": list(codebook),
    }
    _publish(output, ordered, codes, job)
    return codebook


def _packed(
    rows: pa.Table, history_field: str, target_field: str, ordered: pa.Array
) -> tuple[Ints, Ints]:
    """Events as places in `ordered`, with offsets; an item that is not in it is named."""
    history = rows[history_field].combine_chunks()
    if not (pa.types.is_list(history.type) or pa.types.is_large_list(history.type)):
        raise UserError(f"column {history_field!r} is {history.type}; expected a list of item ids")
    lengths = pc.fill_null(pc.list_value_length(history), 0).to_numpy().astype(np.int64)
    flat = history.flatten()
    if target_field in rows.column_names:
        ends = np.cumsum(lengths)
        both = pa.concat_arrays([flat, rows[target_field].combine_chunks().cast(flat.type)])
        order = np.empty(len(both), dtype=np.int64)
        shift = np.repeat(np.arange(len(lengths)), lengths)
        order[np.arange(len(flat)) + shift] = np.arange(len(flat))
        order[ends + np.arange(len(lengths))] = len(flat) + np.arange(len(lengths))
        flat, lengths = both.take(pa.array(order)), lengths + 1
    found = pc.index_in(flat.cast(ordered.type), value_set=ordered)
    if found.null_count:
        name = flat[int(np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))[0])]
        raise UserError(
            f"item {name.as_py()!r} of the sequences is not among the items "
            f"({found.null_count} events): give the items of this data set"
        )
    places = found.to_numpy(zero_copy_only=False).astype(np.int64)
    return places, np.concatenate([[0], np.cumsum(lengths)])


def _publish(output: Path, item_id: pa.Array, codes: Ints, job: dict[str, Any]) -> None:
    """The folder appears when it is whole."""
    with staged(output) as folder:
        table = pa.table({"item_id": item_id, "codes": equal_lists(codes)})
        pq.write_table(table, folder / "part-0.parquet", compression="zstd")
        write_manifest(folder / MANIFEST, {"schema_version": 1, **job})


def codebook_beside(codes_path: str) -> tuple[int, ...] | None:
    """The codebook in the manifest of a folder that `cluster_items` wrote."""
    path = Path(codes_path) / MANIFEST
    if not path.is_file():
        return None
    sizes = json.loads(path.read_text(encoding="utf-8")).get("codebook")
    return None if sizes is None else tuple(int(size) for size in sizes)
