# SPDX-License-Identifier: Apache-2.0
"""The jobs behind the verbs export and predict: which model, which rows, where to.

`trained` is injected by the verbs: (config, checkpoint path, reserved columns) -> a pipeline with
trained weights on the local engine, and where they came from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from tzgen import config as configs
from tzgen.build import Pipeline, open_loader
from tzgen.data.readers import open_reader
from tzgen.data.writers import open_writer
from tzgen.errors import UserError
from tzgen.export.loaded import load_package
from tzgen.export.predicting import Predictor, predict_all
from tzgen.export.writing import export_package
from tzgen.log import LOGGER

ALL_COLUMNS = "ALL_COLUMNS"
Trained = Callable[..., tuple[Pipeline, dict[str, Any]]]


@dataclass(frozen=True)
class Job:
    """One batch prediction: the predictor, the pipeline that parses its rows, and the flags."""

    args: argparse.Namespace
    predictor: Predictor
    pipeline: Pipeline

    def run(self, env: Any) -> None:
        """Predict every row of --predict_input_path, each process its share; publish at the end."""
        args, data = self.args, self.pipeline.config.data_config
        folder = Path(required(args.predict_output_path, "--predict_output_path"))
        loader = open_loader(self.pipeline, args.predict_input_path, mode="predict", env=env)
        kind = args.writer_type or _writer_of(data)
        writer = open_writer(
            kind,
            str(folder),
            rank=env.rank,
            world_size=env.world_size,
            barrier=env.barrier,
            overwrite=args.overwrite,
        )
        rows = predict_all(
            self.predictor,
            loader,
            writer,
            device=env.device,
            output_columns=_split(args.output_columns),
            max_batches=args.predict_steps,
            show=env.is_main,
        )
        LOGGER.info("%d rows predicted by this process, in %s", rows, folder)


def package_job(args: argparse.Namespace, overrides: Sequence[str], device: torch.device) -> Job:
    """Predict from the package of --export_dir; `overrides` are applied to its own config."""
    path = required(args.predict_input_path, "--predict_input_path")
    package = Path(args.export_dir)
    config = configs.load_pipeline(package / "pipeline.config") if package.is_dir() else None
    reserved = reserved_columns(args.reserved_columns, config, path) if config else ()
    loaded = load_package(package, reserved_columns=reserved, overrides=overrides, device=device)
    return Job(args, loaded, loaded.pipeline)


def checkpoint_job(
    args: argparse.Namespace, config: Any, trained: Trained, device: torch.device
) -> Job:
    """Predict from a checkpoint of --pipeline_config."""
    if config is None:
        raise UserError(
            "give --export_dir (a package) or --pipeline_config (a checkpoint's config)"
        )
    path = required(args.predict_input_path, "--predict_input_path")
    reserved = reserved_columns(args.reserved_columns, config, path)
    pipeline, _ = trained(config, args.checkpoint_path, labels=False, reserved_columns=reserved)
    pipeline.module.to(device)
    return Job(args, pipeline, pipeline)


def export_job(args: argparse.Namespace, config: Any, trained: Trained) -> Path:
    """Export a checkpoint; the first eval batch (else training batch) drives tracing and replay."""
    folder = Path(required(args.export_dir, "--export_dir"))
    best = config.export_config.exporter_type == "best"
    averaged = (
        config.export_config.use_dense_ema
        if config.export_config.HasField("use_dense_ema")
        else None
    )
    config.train_config.mixed_precision = config.export_config.mixed_precision  # never training's
    pipeline, provenance = trained(
        config, args.checkpoint_path, labels=False, best=best, averaged=averaged
    )
    pipeline.module.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    path = config.eval_input_path or config.train_input_path
    loader = open_loader(pipeline, path, mode="predict", num_workers=0)
    batch = next(islice(loader.epoch(None, 0), 1), None)
    if batch is None or batch.num_rows < 2:
        raise UserError(f"{path}: export needs a batch of at least two rows to trace and to replay")
    return export_package(pipeline, batch, folder, provenance=provenance, overwrite=args.overwrite)


def reserved_columns(text: str | None, config: Any, path: str) -> tuple[str, ...]:
    """`--reserved_columns` as names; ALL_COLUMNS is every column of the input."""
    names = _split(text)
    if names != (ALL_COLUMNS,):
        return names
    return tuple(open_reader(config.data_config, path, None).schema.names)


def required(value: str | None, flag: str) -> str:
    """The flag's value. Raises UserError when it was not given."""
    if not value:
        raise UserError(f"{flag} is missing; `python -m tzgen.{_verb()} --help` lists the flags")
    return value


def _verb() -> str:
    return "export" if "export" in sys.argv[0] else "predict"


def _writer_of(data: Any) -> str:
    kind = data.DESCRIPTOR.fields_by_name["dataset_type"].enum_type.values_by_number[
        data.dataset_type
    ]
    return {"CsvDataset": "CsvWriter"}.get(kind.name, "ParquetWriter")


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else ()
