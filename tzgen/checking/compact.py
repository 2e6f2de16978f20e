# SPDX-License-Identifier: Apache-2.0
"""Tables cut to the ids of one batch, so that a cluster's config can be tried on a laptop.

Ids are renumbered per table; lookups and gradients are what training does. Weights are FP32: the
local engine has no gradients of FP16 tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tzgen.data.batch import Batch
from tzgen.features import Feature


def compact(features: Sequence[Feature], batch: Batch) -> tuple[tuple[Feature, ...], Batch]:
    """The same features over tables of only the rows that `batch` reads, and the batch for them."""
    used: dict[str, list[Tensor]] = {}
    for feature in features:
        if feature.table is not None and feature.name in batch.ids:
            used.setdefault(feature.table.name, []).append(batch.ids[feature.name].values)
    rows = {table: torch.unique(torch.cat(ids)) for table, ids in used.items()}
    small = []
    ids = dict(batch.ids)
    for feature in features:
        if feature.table is None or feature.table.name not in rows:
            small.append(feature)
            continue
        known = rows[feature.table.name]
        spec = replace(feature.table, num_embeddings=max(known.numel(), 1), data_type="FP32")
        small.append(replace(feature, table=spec))
        if feature.name in ids:
            old = ids[feature.name]
            ids[feature.name] = replace(old, values=torch.searchsorted(known, old.values))
    return tuple(small), replace(batch, ids=ids)
