# SPDX-License-Identifier: Apache-2.0
"""A package, loaded: rows in, predictions out, by compiled graph or by rebuilt modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import tzgen.ops  # noqa: F401  compiled graphs name its custom ops
from tzgen import config as configs
from tzgen.build import Pipeline, build_pipeline
from tzgen.data.batch import Batch, Ragged
from tzgen.embeddings import LocalTables
from tzgen.errors import UserError
from tzgen.export.graphs import FullGraph, GraphInput, flatten
from tzgen.export.package import Package, open_package

Graph = Callable[..., Sequence[Tensor]]


@dataclass
class LoadedPackage:
    """Predicts like `Pipeline.predict`, from what lies in the package and nothing else."""

    package: Package
    pipeline: Pipeline
    inputs: tuple[GraphInput, ...]
    graph: Graph

    def predict(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        """({"probs_is_click": [N], ...}, candidates per row or None)."""
        with torch.no_grad():
            return self.run(self.pipeline.module.embeddings(batch))

    def run(self, groups: dict[str, Tensor | Ragged]) -> tuple[dict[str, Tensor], Tensor | None]:
        """The graph alone, on groups that were looked up already."""
        with torch.no_grad():
            results = self.graph(*flatten(groups, self.inputs))
        named = dict(zip(self.package.manifest["outputs"], results, strict=True))
        repeat = named.pop("repeat", None)
        return named, repeat


def load_package(
    path: Path,
    *,
    reserved_columns: Sequence[str] = (),
    overrides: Sequence[str] = (),
    device: torch.device | None = None,
) -> LoadedPackage:
    """Open a package for prediction on `device` (None: the CPU); `overrides` are `--set` texts for
    its config.

    Raises UserError when it was compiled for another device type or its runtime is not installed.
    """
    package, device = open_package(path), device or torch.device("cpu")
    config = configs.load_pipeline(package.config_path, overrides)
    pipeline = build_pipeline(
        config,
        device=device,
        engine="local",
        labels=False,
        reserved_columns=reserved_columns,
        source=str(path),
    )
    tables = pipeline.module.embeddings.tables
    assert isinstance(tables, LocalTables), "the pipeline was built with the local engine"
    tables.load_tables(load_file(path / "tables.safetensors"))
    pipeline.module.eval()
    inputs = tuple(GraphInput(**entry) for entry in package.manifest["inputs"])
    return LoadedPackage(package, pipeline, inputs, _graph(package, pipeline, inputs, device))


def _graph(
    package: Package, pipeline: Pipeline, inputs: tuple[GraphInput, ...], device: torch.device
) -> Graph:
    if package.format == "EAGER":
        missing, unexpected = pipeline.module.head.load_state_dict(
            load_file(package.path / "dense.safetensors"), strict=False
        )
        if missing or unexpected:
            raise UserError(
                f"{package.path}: weights and pipeline.config disagree; missing {missing[:3]}, "
                f"unexpected {unexpected[:3]}: export again with this version"
            )
        return FullGraph(pipeline, inputs).eval()
    made_for = package.manifest["device"]
    if made_for != device.type:
        raise UserError(
            f"{package.path} was compiled for {made_for}, this process computes on {device.type}: "
            "export it here, or with --set export_config.format=EAGER"
        )
    compiled: Any = torch._inductor.aoti_load_package(str(package.graph("full")))
    return compiled
