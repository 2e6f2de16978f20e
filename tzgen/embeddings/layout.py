# SPDX-License-Identifier: Apache-2.0
"""Which TorchRec collection each table lives in, as plain values.

A table used by any sequence lives in an EmbeddingCollection (a row an id; we pool them), one for
each width and type. The others live in an EmbeddingBagCollection that sums; means are divided by
us, for TorchRec has one pooling a table and divides before or after the sharded sum as its plan
goes. TorchRec would silently make two tables of one name, so no table is in two collections.
"""

from __future__ import annotations

from dataclasses import dataclass

from tzgen.embeddings.plan import Plan


@dataclass(frozen=True)
class Collection:
    """`keys`: (KJT key, feature) in KJT order; `key_of`: Lookup.key -> KJT key."""

    name: str
    pooled: bool
    weighted: bool
    tables: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]
    lookups: tuple[str, ...]

    def table_keys(self, table: str) -> list[str]:
        return [key for key, _ in self.keys if key.endswith(f"|{table}")]


def kjt_key(feature: str, table: str) -> str:
    """Unique for a feature in a table; TorchRec gives '@' in keys a meaning of its own."""
    return f"{feature}|{table}"


def collections_of(plan: Plan) -> tuple[Collection, ...]:
    by_step = plan.by_step()
    weighted = {lookup.table for lookup in plan.lookups.values() if lookup.weighted}
    homes: dict[str, list[str]] = {}
    for name, spec in plan.tables.items():
        if name in by_step:
            home = f"sequence_{spec.embedding_dim}_{spec.data_type.lower()}"
        else:
            home = "pooled_weighted" if name in weighted else "pooled"
        homes.setdefault(home, []).append(name)
    made = []
    for home, tables in homes.items():
        mine = [lookup for lookup in plan.lookups.values() if lookup.table in tables]
        mine.sort(key=lambda lookup: tables.index(lookup.table))
        keys = dict.fromkeys((kjt_key(one.feature, one.table), one.feature) for one in mine)
        made.append(
            Collection(
                name=home,
                pooled=home.startswith("pooled"),
                weighted=home == "pooled_weighted",
                tables=tuple(tables),
                keys=tuple(keys),
                lookups=tuple(lookup.key for lookup in mine),
            )
        )
    return tuple(made)
