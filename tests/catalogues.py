# SPDX-License-Identifier: Apache-2.0
"""What a generator's config names besides rows: a bundle, and how often its items were met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tzgen.config import load_pipeline
from tzgen.sid.bundle import write_bundle
from tzgen.sid.space import SidSpace
from tzgen.sid.table import make_table

# of titles that are made up
WORDS = [
    "red",
    "blue",
    "nail",
    "polish",
    "cream",
    "shampoo",
    "brush",
    "hair",
    "eye",
    "liner",
    "soft",
    "strong",
]


def publish_for(path: Path, folder: Path) -> bool:
    """Publish a bundle of the items that synthesised rows are about, below `folder`, under the
    relative paths of the config at `path`; False where its model names none."""
    config = load_pipeline(path).model_config
    model: Any = getattr(config, config.WhichOneof("model"))
    if "bundle_path" not in model.DESCRIPTOR.fields_by_name:
        return False
    ids = np.arange(1000)
    codes = np.stack([ids // 100, ids // 10 % 10, ids % 10], 1)
    table = make_table(pa.array(ids), codes, SidSpace((10, 10, 10)))
    bundle = folder / model.bundle_path
    write_bundle(bundle.parent, bundle.name, table, policy="none", capacity=1, notes={})
    items = (folder / model.cold_items.input_path).parent
    items.mkdir(parents=True)
    counts = pa.table({"item_id": ids, "train_count": ids % 9})
    pq.write_table(counts, items / "part-0.parquet")
    return True
