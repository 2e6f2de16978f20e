# SPDX-License-Identifier: Apache-2.0
"""A small published bundle, generators over it, and groups of item ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from google.protobuf import text_format
from torch import Tensor

from tzgen.data.batch import Ragged
from tzgen.models.base import MODELS
from tzgen.models.generator_base import Generator
from tzgen.protos.model_pb2 import ModelConfig
from tzgen.sid.bundle import Bundle, write_bundle
from tzgen.sid.collisions import resolve
from tzgen.sid.space import SidSpace
from tzgen.sid.table import make_table, merged_table, resolved_table

SIZES = (5, 4)
GROUPS = """
feature_groups { group_name: "uih" feature_names: "uih__item_id" group_type: JAGGED_SEQUENCE }
feature_groups { group_name: "target" feature_names: "target__item_id" group_type: JAGGED_SEQUENCE }
"""
SMALL = "d_model: 8 num_heads: 2 d_kv: 4 d_ff: 12 num_layers: 2"
TIGER = "tiger { bundle_path: '%s' max_items: 4 transformer { " + SMALL + " } %s }"
T5 = "genrec { bundle_path: '%s' max_items: 4 transformer { " + SMALL + " } %s }"
HSTU = """genrec { bundle_path: '%s' max_items: 4 hstu_layers: 2 hstu {
  embedding_dim: 8 num_heads: 2 hidden_dim: 4 attention_dim: 4 preset: PAPER } %s }"""
TEXTS = {"tiger": TIGER, "transformer": T5, "hstu": HSTU}


def item_ids(count: int = 30, first: int = 0) -> list[int]:
    """Every third number from 100 on, so that ids are no rows."""
    return [100 + 3 * (first + i) for i in range(count)]


def publish(
    root: Path, generation: str = "one", *, seed: int = 0, policy: str = "suffix", count: int = 30
) -> Path:
    """<root>/<generation> of `count` items; under `suffix` a third level of 8 codes."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, SIZES, (count, 2))
    table = make_table(pa.array(item_ids(count)), codes, SidSpace(SIZES))
    size = 8 if policy == "suffix" else 0
    found = resolve(table.codes, SidSpace(SIZES), policy, suffix_size=size)
    notes = {"input_hash": "x"}
    done = resolved_table(table, found)
    return write_bundle(root, generation, done, policy=policy, capacity=1, notes=notes).path


def append(root: Path, before: Bundle, generation: str = "two") -> Path:
    """Ten more items behind those of `before`."""
    codes = np.random.default_rng(9).integers(0, SIZES, (10, 2))
    table = make_table(pa.array(item_ids(10, 30)), codes, SidSpace(SIZES))
    found = resolve(table.codes, SidSpace(SIZES), "suffix", suffix_size=8, taken=before.table.codes)
    new = resolved_table(table, found)
    whole = merged_table(before.table, new)
    notes = {"input_hash": "y"}
    return write_bundle(
        root, generation, whole, policy="suffix", capacity=1, notes=notes, appended=(before, new)
    ).path


def config_of(text: str, groups: str = GROUPS) -> ModelConfig:
    return text_format.Parse(f"{groups} {text}", ModelConfig())


def generator(
    name: str, bundle: Path, more: str = "", *, widths: dict[str, tuple[int, ...]] | None = None
) -> Generator:
    """In evaluation mode, with weights large enough that scores differ."""
    groups = GROUPS
    if widths:
        groups += 'feature_groups { group_name: "user" feature_names: "u" group_type: DEEP }'
    config = config_of(TEXTS[name] % (bundle, more), groups)
    kind = config.WhichOneof("model")
    assert MODELS[kind].check(config) == []
    torch.manual_seed(3)
    made = MODELS[kind](getattr(config, kind), widths=widths or {}, tasks=(), kernel="PYTORCH")
    assert isinstance(made, Generator)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()


def ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    flat = [item for row in rows for item in row]
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    longest = max((len(row) for row in rows), default=0)
    return Ragged(torch.tensor(flat, dtype=torch.int64).view(-1, 1), lengths, longest)


def groups(
    histories: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> dict[str, Tensor | Ragged]:
    return {"uih": ragged(histories), "target": ragged(targets)}


# An empty history, one item, unknown ones, more than max_items; targets known, unknown and absent.
HISTORIES = ([], [103], [7, 109, 112, 8], [100, 103, 106, 109, 112, 115])
TARGETS = ([106], [187], [5], [])
