# SPDX-License-Identifier: Apache-2.0
"""A small pipeline with its rows, for tests of single parts of the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from integration.world import SMALL, make_rows

from tzgen.build import Pipeline, build_pipeline, open_loader
from tzgen.config import load_pipeline
from tzgen.data.batch import Batch
from tzgen.train.environment import Env

ENV = Env(0, 1, 0, torch.device("cpu"))


def config_of(folder: Path, *overrides: str) -> Any:
    """The small config over rows that are made in `folder`."""
    for name, rows, seed in (("train", 24, 1), ("eval", 21, 2)):
        if not (folder / f"{name}.parquet").exists():
            make_rows(folder / f"{name}.parquet", rows, seed)
    config = load_pipeline(SMALL, overrides)
    config.train_input_path = str(folder / "train.parquet")
    config.eval_input_path = str(folder / "eval.parquet")
    return config


def pipeline_of(folder: Path, *overrides: str, engine: Any = "local") -> Pipeline:
    return build_pipeline(config_of(folder, *overrides), engine=engine)


def batches_of(pipeline: Pipeline, mode: Any = "train") -> list[Batch]:
    """All batches of the first epoch."""
    config = pipeline.config
    path = config.train_input_path if mode == "train" else config.eval_input_path
    return list(open_loader(pipeline, path, mode=mode).epoch(None, 0))


def snapshot(pipeline: Pipeline) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in pipeline.module.state_dict().items()}


def moved(before: dict[str, torch.Tensor], pipeline: Pipeline) -> list[str]:
    """Names of the tensors that are no longer what they were."""
    now = pipeline.module.state_dict()
    return [name for name, value in before.items() if not torch.equal(value, now[name])]


def names(parts: Sequence[Path]) -> set[str]:
    return {path.name for path in parts}
