# SPDX-License-Identifier: Apache-2.0
"""Two small configs with rows, and what a dry run of them gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tzgen.checking.dry_run import DryRun, dry_run
from tzgen.config import parse_pipeline

CPU = torch.device("cpu")

TEXTS = Path(__file__).parent / "texts"
HSTU = (TEXTS / "hstu.config").read_text()
TOWER = (TEXTS / "tower.config").read_text()
# The ranker with a second channel over the same columns: semi-local, and cut before its last layer.
_CHANNEL = HSTU[HSTU.index("    hstu {") : HSTU.index("    fusion_mtl_tower")]
_SECOND = _CHANNEL.replace("hstu {", 'hstu { name: "again"', 1).replace(
    "attention_dim: 3", "attention_dim: 3 sla_k1: 2 sla_k2: 3"
)
_CUT = "attn_num_layers: 2 attn_truncation_split_layer: 1 attn_truncation_tail_len: 4"
_SECOND = _SECOND.replace("attn_num_layers: 2", _CUT)
_GROUPS = "".join(
    f'feature_groups {{ group_name: "again{suffix}" feature_names: "seen__{name}" '
    "group_type: JAGGED_SEQUENCE }\n"
    for suffix, name in (("", "item"), ("_action", "act"))
)
ULTRA = (
    HSTU.replace(_CHANNEL, _CHANNEL.replace("hstu {", 'hstu { name: "uih"', 1) + _SECOND)
    .replace("dlrm_hstu {", "ultra_hstu {")
    .replace("  ultra_hstu", _GROUPS + "  ultra_hstu")
)
# Row 1 has 8 events (two too many), row 2 none; candidates 1, 3, 2, 1.
HISTORY = ([1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11], [], [1])
ACTS = ([0, 1, 2], [3, 0, 1, 2, 3, 1, 0, 2], [], [1])
SHOWN = ([1], [40, 2, 3], [6, 49], [1])
LABELS = ([3], [0, 1, 1], [2, 1], [0])


def hstu_rows(times: int = 1, **columns: Any) -> pa.Table:
    rows = {
        "seen__item": HISTORY,
        "seen__act": ACTS,
        "shown__item": SHOWN,
        "shown__act": LABELS,
        "user": [3, 8, 0, 5],
        "city": [0, 1, 6, 2],
        **columns,
    }
    return pa.table({name: list(values) * times for name, values in rows.items()})


def tower_rows(**columns: Any) -> pa.Table:
    ages = [[1.0, 2.0, 3.0]] * 4
    return pa.table({"user": [0, 8, 3, 3], "age": ages, "y": [0, 1, 1, 1], **columns})


def world(folder: Path, text: str, rows: pa.Table | None) -> tuple[Any, Path]:
    """(config, its file); without rows train_input_path stays empty."""
    data = ""
    if rows is not None:
        data = str(folder / "rows.parquet")
        pq.write_table(rows, data)
    path = folder / "x.config"
    path.write_text(text.replace("TRAIN", data))
    return parse_pipeline(path.read_text()), path


def tried(folder: Path, text: str, rows: pa.Table | None) -> DryRun:
    config, path = world(folder, text, rows)
    return dry_run(config, synthetic=False, device=CPU, source=str(path))
