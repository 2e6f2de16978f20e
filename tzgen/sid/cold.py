# SPDX-License-Identifier: Apache-2.0
"""Which items of a table are cold: seldom or never met in training. N items."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tzgen.data.readers import ParquetDataset
from tzgen.errors import UserError
from tzgen.sid.table import SidTable


def cold_items(
    table: SidTable, input_path: str, *, item_id_field: str, count_field: str, max_count: int
) -> NDArray[np.bool_]:
    """bool [N], by row of the table: at most `max_count` training events, or no row in the files.

    The columns are named in the error when they are missing; items of other catalogues are skipped.
    """
    reader = ParquetDataset(input_path)
    missing = [name for name in (item_id_field, count_field) if name not in reader.schema.names]
    if missing:
        there = ", ".join(reader.schema.names)
        raise UserError(
            f"cold_items.input_path {input_path} has no column {missing[0]!r}; it has {there}: "
            "set item_id_field and count_field"
        )
    batches = [
        reader.read_rows(file, group, [item_id_field, count_field])
        for file, info in enumerate(reader.files)
        for group in range(len(info.group_rows))
    ]
    rows = pa.Table.from_batches(batches)
    at = table.rows_of(rows[item_id_field].combine_chunks())
    counts = np.asarray(pc.fill_null(rows[count_field], 0).to_numpy(), dtype=np.int64)
    cold = np.ones(len(table), dtype=np.bool_)
    cold[at[(at >= 0) & (counts > max_count)]] = False
    return cold
