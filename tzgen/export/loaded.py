# SPDX-License-Identifier: Apache-2.0
"""A package, loaded: rows in, predictions out, by compiled graph or by rebuilt modules."""

from __future__ import annotations

import functools
from collections.abc import Sequence
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
from tzgen.export.cached import Cached, CompiledCached, EagerCached, Graph, Groups, cached_model
from tzgen.export.cached_graphs import GRAPHS, CacheLayout
from tzgen.export.graphs import FullGraph, GraphInput, flatten
from tzgen.export.native import load_carried
from tzgen.export.package import Package, open_package
from tzgen.export.semantic_ids import find_ids
from tzgen.modules.stu_cache import EncodedHistory


@dataclass
class LoadedPackage:
    """Predicts like `Pipeline.predict`, from what lies in the package and nothing else.

    Groups are what `pipeline.module.embeddings(batch)` returns, or the part that is read.
    """

    package: Package
    pipeline: Pipeline
    inputs: tuple[GraphInput, ...]
    graph: Graph
    cached: Cached | None

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

    def encode(self, groups: Groups, request_time: Tensor | None = None) -> EncodedHistory:
        """Contextual features and histories as a cache; candidates are not read but for their time.

        request_time int64 [B]: what ages are measured from, else the newest candidate_timestamp.
        """
        with torch.no_grad():
            return self._need_cached().encode(groups, request_time)

    def score(self, groups: Groups, cache: EncodedHistory) -> dict[str, Tensor]:
        """{"probs_is_click": [N], ...} of candidate groups, row b against row b of the cache."""
        with torch.no_grad():
            return self._need_cached().score(groups, cache)

    def append(self, groups: Groups, cache: EncodedHistory) -> EncodedHistory:
        """New events as a cache of these alone, for `cache.extended`; append-stable models only."""
        with torch.no_grad():
            return self._need_cached().append(groups, cache)

    def _need_cached(self) -> Cached:
        if self.cached is None:
            graphs = ", ".join(self.package.graph_names)
            raise UserError(
                f"{self.package.path} has the graphs {graphs} and cannot encode and score apart: "
                "its model has no such graphs, or it was exported without them"
            )
        return self.cached


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
    load_carried(package)
    config = configs.load_pipeline(package.config_path, overrides)
    find_ids(config, path)
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
    _load_dense(package, pipeline)
    if package.format == "EAGER":
        model = cached_model(pipeline.model)
        cached = None if model is None else EagerCached(pipeline, model)
        eager = FullGraph(pipeline, inputs, served=True).eval()
        return LoadedPackage(package, pipeline, inputs, eager, cached)
    made_for = package.manifest["device"]
    if made_for != device.type:
        raise UserError(
            f"{package.path} was compiled for {made_for}, this process computes on {device.type}: "
            "export it here, or with --set export_config.format=EAGER"
        )
    full = _compiled(package, pipeline, "full")
    return LoadedPackage(package, pipeline, inputs, full, _compiled_cached(package, pipeline))


def dense_state(pipeline: Pipeline) -> dict[str, Tensor]:
    """All weights but tables: the head's by their names, those beside tables under embeddings."""
    module = pipeline.module
    beside = {
        f"embeddings.{name}": tensor
        for name, tensor in module.embeddings.state_dict().items()
        if not name.startswith("tables.")
    }
    return {**module.head.state_dict(), **beside}


def _load_dense(package: Package, pipeline: Pipeline) -> None:
    held, found = dense_state(pipeline), load_file(package.path / "dense.safetensors")
    missing, unexpected = sorted(held.keys() - found.keys()), sorted(found.keys() - held.keys())
    if missing or unexpected:
        raise UserError(
            f"{package.path}: weights and pipeline.config disagree; missing {missing[:3]}, "
            f"unexpected {unexpected[:3]}: export again with this version"
        )
    with torch.no_grad():
        for name, tensor in held.items():
            tensor.copy_(found[name])


def _compiled(package: Package, pipeline: Pipeline, name: str) -> Graph:
    """A compiled graph over the pipeline's weights, which all graphs share."""
    compiled: Any = torch._inductor.aoti_load_package(str(package.graph(name)))
    if "weights" not in package.manifest:  # an older package, whose graphs hold their own
        return compiled  # type: ignore[no-any-return]
    head = pipeline.module.head
    held = {
        f"head.{key}": value for key, value in (*head.named_parameters(), *head.named_buffers())
    }
    literals = package.graph(name).with_suffix(".safetensors")
    if literals.exists():
        device = next(pipeline.module.parameters()).device
        held |= load_file(literals, device=str(device))
    names = compiled.get_constant_fqns()
    if missing := [key for key in names if key not in held]:
        raise UserError(
            f"{package.graph(name)} reads {missing[:3]}, which dense.safetensors and the model do "
            "not have: export again with this version"
        )
    given = {key: held[key].detach() for key in names}
    compiled.load_constants(given, check_full_update=True, user_managed=True)
    return compiled  # type: ignore[no-any-return]


def _compiled_cached(package: Package, pipeline: Pipeline) -> Cached | None:
    """The compiled graphs beside `full`, where the package has them."""
    model, listed = cached_model(pipeline.model), package.manifest.get("graphs", {})
    names = [name for name in GRAPHS if name in listed]
    if model is None or not names:
        return None
    return CompiledCached(
        model,
        CacheLayout(**package.manifest["cache"]),
        inputs={n: tuple(GraphInput(**entry) for entry in listed[n]["inputs"]) for n in names},
        outputs={n: tuple(listed[n]["outputs"]) for n in names},
        graph=functools.cache(
            functools.partial(_compiled, package, pipeline)
        ),  # loaded when first used
    )
