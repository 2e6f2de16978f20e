# SPDX-License-Identifier: Apache-2.0
"""A small pipeline with random weights and a batch for it; shared by the tests of tzgen/export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from tzgen.build import Pipeline, build_pipeline
from tzgen.config import load_pipeline
from tzgen.data.batch import Batch, Source
from tzgen.features import create_features
from tzgen.features.synthesis import synthesise
from tzgen.modules.kv_cache import CacheShape, PagedKVCache
from tzgen.modules.stu_cache import EncodedHistory, store

TEXTS = Path(__file__).resolve().parent.parent / "integration" / "texts"


def config_of(name: str = "dlrm_hstu", *overrides: str) -> Any:
    """One of the integration texts, in float32, exported as EAGER unless overridden."""
    base = (
        "data_config.dataset_type=ParquetDataset",
        "train_config.mixed_precision=",
        "export_config.format=EAGER",
    )
    return load_pipeline(TEXTS / f"{name}.config", [*base, *overrides])


def pipeline_of(config: Any) -> Pipeline:
    """Local engine, no labels, evaluation mode."""
    pipeline = build_pipeline(config, engine="local", labels=False)
    pipeline.module.eval()
    return pipeline


def batch_of(config: Any, pipeline: Pipeline, num_rows: int = 6, seed: int = 1) -> Batch:
    """Synthetic rows, parsed."""
    table = synthesise(config, create_features(config), num_rows, seed=seed)
    rows: pa.RecordBatch = table.combine_chunks().to_batches()[0]
    source = Source(
        ("rows.parquet",), torch.zeros(num_rows, dtype=torch.int32), torch.arange(num_rows)
    )
    return pipeline.parse(rows, source)


def in_pages(cache: EncodedHistory, page_size: int = 4) -> EncodedHistory:
    """The same cache in pages."""
    first = cache.layers[0]
    shape = CacheShape(
        len(cache.layers),
        first.k.size(1),
        first.k.size(2),
        first.v.size(2),
        page_size=page_size,
        dtype=first.k.dtype,
        timestamps=first.timestamps is not None,
    )
    counts = cache.lengths.tolist()
    pages = PagedKVCache(shape, num_pages=sum(shape.pages_of(count) for count in counts) + 1)
    handles = [pages.create() for _ in counts]
    with pages.write(handles, counts) as write:
        store(cache, write)
    return replace(cache, layers=pages.views(handles))
