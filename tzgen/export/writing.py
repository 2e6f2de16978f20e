# SPDX-License-Identifier: Apache-2.0
"""Make a package from a trained pipeline: weights, graphs, proof of equality, manifest last."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tzgen import config as configs
from tzgen.build import Pipeline
from tzgen.data.batch import Batch, Ragged
from tzgen.errors import UserError
from tzgen.export.graphs import FullGraph, flatten, inputs_of, trace
from tzgen.export.loaded import load_package
from tzgen.export.package import staged, write_manifest
from tzgen.export.parity import edge_cases, largest_difference
from tzgen.log import LOGGER


def export_package(
    pipeline: Pipeline,
    batch: Batch,
    export_dir: Path,
    *,
    provenance: Mapping[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write a package of `pipeline` (local engine, trained weights) to `export_dir`.

    `batch` is a real batch on the CPU: it drives the tracer and is replayed, with rows cut to 0-
    and 1-step histories, through the package and through eager. Raises UserError when they differ
    by more than export_config.parity_tolerance; nothing is published then.
    """
    pipeline.module.eval()
    chosen, device = _format(pipeline.config.export_config), device_of(pipeline)
    with torch.no_grad():
        groups = pipeline.module.embeddings(batch.to(device))
    graph = FullGraph(pipeline, inputs_of(groups, _max_lens(groups, pipeline))).eval()
    with torch.no_grad():
        expected = graph(*flatten(groups, graph.inputs))
    with staged(export_dir, overwrite=overwrite) as folder:
        _write_weights(pipeline, folder)
        _write_graph(chosen, graph, groups, folder)
        save_file(
            {
                **{f"in.{i}": t.clone() for i, t in enumerate(flatten(groups, graph.inputs))},
                **{
                    f"out.{n}": t.clone() for n, t in zip(graph.output_names, expected, strict=True)
                },
            },
            folder / "replay.safetensors",
        )
        body = {
            "format": chosen,
            "device": device.type,
            "inputs": [entry.as_json() for entry in graph.inputs],
            "outputs": list(graph.output_names),
            "torch": torch.__version__,
            **provenance,
        }
        write_manifest(folder, body)
        body["parity"] = _prove(pipeline, batch, folder)
        (folder / "manifest.json").unlink()
        write_manifest(folder, body)
    return export_dir


def _prove(pipeline: Pipeline, batch: Batch, folder: Path) -> dict[str, float]:
    """Largest absolute difference between package and eager for each case; refuses drift."""
    device = device_of(pipeline)
    loaded = load_package(folder, device=device)
    tolerance = pipeline.config.export_config.parity_tolerance
    found: dict[str, float] = {}
    for case, cut in edge_cases(batch, _candidates(pipeline)).items():
        rows = cut.to(device)
        name, difference = largest_difference(pipeline.predict(rows)[0], loaded.predict(rows)[0])
        found[case] = difference
        if not difference <= tolerance:
            raise UserError(
                f"the package differs from eager by {difference:.3g} in {name} ({case}); "
                f"export_config.parity_tolerance is {tolerance:.3g}. Nothing was published. "
                "Relax the tolerance for reduced precision, or export with format EAGER."
            )
    return found


def device_of(pipeline: Pipeline) -> torch.device:
    """Where the weights are, and so what a compiled graph is compiled for."""
    return next(pipeline.module.parameters()).device


def _candidates(pipeline: Pipeline) -> set[str]:
    """Features of the groups that hold candidates (`candidate`, `candidate_timestamp`)."""
    groups = pipeline.config.model_config.feature_groups
    named = [group for group in groups if group.group_name.startswith("candidate")]
    return {feature for group in named for feature in group.feature_names}


def _write_weights(pipeline: Pipeline, folder: Path) -> None:
    weights = pipeline.module.embeddings.tables.named_weights()
    tables = {name: weight.detach().contiguous().cpu() for name, weight in weights}
    dense = {
        n: t.detach().clone().contiguous().cpu()
        for n, t in pipeline.module.head.state_dict().items()
    }
    save_file(tables, folder / "tables.safetensors")
    save_file(dense, folder / "dense.safetensors")
    (folder / "pipeline.config").write_text(configs.dump(pipeline.config), encoding="utf-8")


def _write_graph(
    chosen: str, graph: FullGraph, groups: Mapping[str, Tensor | Ragged], folder: Path
) -> None:
    if chosen == "EAGER":
        return
    (folder / "graphs").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch about its own pytrees
        torch._inductor.aoti_compile_and_package(
            trace(graph, groups), package_path=str(folder / "graphs" / "full.pt2")
        )


def _max_lens(groups: Mapping[str, Tensor | Ragged], pipeline: Pipeline) -> dict[str, int]:
    """A constant bound for each ragged group: the model's max_seq_len, or what the batch has."""
    kind = pipeline.config.model_config.WhichOneof("model")
    message = getattr(pipeline.config.model_config, kind)
    bound = message.max_seq_len if "max_seq_len" in message.DESCRIPTOR.fields_by_name else 0
    return {
        name: max(bound, value.max_len)
        for name, value in groups.items()
        if isinstance(value, Ragged)
    }


def _format(export_config: Any) -> str:
    asked = (
        export_config.DESCRIPTOR.fields_by_name["format"]
        .enum_type.values_by_number[export_config.format]
        .name
    )
    if asked == "AUTO":
        compiler = shutil.which("g++") or shutil.which("clang++")
        chosen = "AOTI" if compiler else "EAGER"
        LOGGER.info(
            "export_config.format AUTO: %s%s", chosen, "" if compiler else " (no C++ compiler here)"
        )
        return chosen
    if asked == "AOTI" and not (shutil.which("g++") or shutil.which("clang++")):
        raise UserError(
            "export_config.format AOTI needs a C++ compiler (g++ or clang++) and none is on PATH: "
            "install one, or use --set export_config.format=EAGER"
        )
    return asked
