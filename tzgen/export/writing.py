# SPDX-License-Identifier: Apache-2.0
"""Make a package from a trained pipeline: weights, graphs, proof of equality, manifest last."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tzgen import config as configs
from tzgen.build import Pipeline
from tzgen.data.batch import Batch, Ragged
from tzgen.errors import UserError
from tzgen.export.cached import cached_model
from tzgen.export.cached_graphs import TracedGraph, make_graphs
from tzgen.export.graphs import FullGraph, GraphInput, flatten, inputs_of, trace
from tzgen.export.loaded import dense_state, load_package
from tzgen.export.native import carry
from tzgen.export.package import staged, write_manifest
from tzgen.export.parity import cached_answers, edge_cases, largest_difference
from tzgen.export.semantic_ids import carry_ids
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
    chosen, device = _format(pipeline), device_of(pipeline)
    with torch.no_grad():
        groups = pipeline.module.embeddings(batch.to(device))
    graph = FullGraph(pipeline, inputs_of(groups, _max_lens(groups, pipeline))).eval()
    flat = flatten(groups, graph.inputs)
    with torch.no_grad():
        expected = graph(*flat)
    cached = _cached_graphs(pipeline, chosen, groups, graph.inputs)
    with staged(export_dir, overwrite=overwrite) as folder:
        _write_weights(pipeline, folder)
        if chosen == "AOTI":
            examples = {name: (made.graph, made.example) for name, made in cached.items()}
            _compile({"full": (graph, flat), **examples}, folder)
        _write_replay(flat, dict(zip(graph.output_names, expected, strict=True)), folder)
        full = {"inputs": [e.as_json() for e in graph.inputs], "outputs": list(graph.output_names)}
        body = {
            "format": chosen,
            "device": device.type,
            **full,
            "graphs": {"full": full, **{name: made.as_json() for name, made in cached.items()}},
            **_cache_facts(pipeline, cached),
            "weights": "dense.safetensors",
            "native_library": carry(pipeline, folder, device),
            "torch": torch.__version__,
            **provenance,
        }
        write_manifest(folder, body)
        body["parity"] = _prove(pipeline, batch, folder)
        (folder / "manifest.json").unlink()
        write_manifest(folder, body)
    return export_dir


def _cached_graphs(
    pipeline: Pipeline,
    chosen: str,
    groups: Mapping[str, Tensor | Ragged],
    inputs: Sequence[GraphInput],
) -> dict[str, TracedGraph]:
    """The graphs beside `full`; {} where the model has none or export_config wants none."""
    model = cached_model(pipeline.model)
    if model is None or not pipeline.config.export_config.cached_graphs:
        return {}
    if model.transducer.stack.truncation is not None:
        if chosen == "AOTI":
            LOGGER.warning(
                "encode and score are not exported: with attention truncation, layers hold "
                "different numbers of tokens, which no graph can foresee; format EAGER has both"
            )
        return {}
    return make_graphs(pipeline, model, groups, inputs)


def _cache_facts(pipeline: Pipeline, cached: Mapping[str, TracedGraph]) -> dict[str, Any]:
    """What a manifest says of the cache, and why there is no append."""
    model = cached_model(pipeline.model)
    if model is None or not cached:
        return {}
    layout = cached["encode"].graph.layout
    refused = [str(choice) for choice in model.append_refusals]
    return {"cache": layout.as_json(), "append_refused": refused}


def _prove(pipeline: Pipeline, batch: Batch, folder: Path) -> dict[str, float]:
    """Largest absolute difference between package and eager for each case; refuses drift."""
    device = device_of(pipeline)
    loaded = load_package(folder, device=device)
    tolerance = pipeline.config.export_config.parity_tolerance
    found: dict[str, float] = {}
    for case, cut in edge_cases(batch, _candidates(pipeline)).items():
        rows = cut.to(device)
        expected = pipeline.predict(rows)[0]
        answers = {case: loaded.predict(rows)[0], **cached_answers(loaded, rows, case)}
        for kind, answer in answers.items():
            name, difference = largest_difference(expected, answer)
            found[kind] = difference
            if not difference <= tolerance:
                raise UserError(
                    f"the package differs from eager by {difference:.3g} in {name} ({kind}); "
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
        name: tensor.detach().clone().contiguous().cpu()
        for name, tensor in dense_state(pipeline).items()
    }
    save_file(tables, folder / "tables.safetensors")
    save_file(dense, folder / "dense.safetensors")
    config = carry_ids(pipeline.config, folder)
    (folder / "pipeline.config").write_text(configs.dump(config), encoding="utf-8")


def _write_replay(flat: Sequence[Tensor], outputs: Mapping[str, Tensor], folder: Path) -> None:
    tensors = {f"in.{index}": tensor.clone() for index, tensor in enumerate(flat)}
    tensors.update({f"out.{name}": tensor.clone() for name, tensor in outputs.items()})
    save_file(tensors, folder / "replay.safetensors")


def _compile(graphs: Mapping[str, tuple[nn.Module, tuple[Tensor, ...]]], folder: Path) -> None:
    """Compile without weights; tensors that the code itself writes down lie beside each graph."""
    (folder / "graphs").mkdir()
    for name, (graph, example) in graphs.items():
        program = trace(graph, example)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch about its own pytrees
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(folder / "graphs" / f"{name}.pt2"),
                inductor_configs={"aot_inductor.package_constants_in_so": False},
            )
        held = {key for key, _ in (*graph.named_parameters(), *graph.named_buffers())}
        literals = {
            key: value.detach().clone().contiguous().cpu()
            for key, value in program.constants.items()
            if isinstance(value, Tensor) and key not in held
        }
        if literals:
            save_file(literals, folder / "graphs" / f"{name}.safetensors")


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


def _format(pipeline: Pipeline) -> str:
    export_config = pipeline.config.export_config
    asked = (
        export_config.DESCRIPTOR.fields_by_name["format"]
        .enum_type.values_by_number[export_config.format]
        .name
    )
    compiler = shutil.which("g++") or shutil.which("clang++")
    searches = pipeline.model.measures == "items"
    if asked == "AUTO":
        chosen = "AOTI" if compiler and not searches else "EAGER"
        why = "" if compiler else " (no C++ compiler here)"
        why = " (the model searches a trie, which no graph holds)" if searches else why
        LOGGER.info("export_config.format AUTO: %s%s", chosen, why)
        return chosen
    if asked == "AOTI" and searches:
        raise UserError(
            "export_config.format AOTI: a generator searches its trie, which no compiled graph "
            "holds; use --set export_config.format=EAGER (AUTO takes it)"
        )
    if asked == "AOTI" and not compiler:
        raise UserError(
            "export_config.format AOTI needs a C++ compiler (g++ or clang++) and none is on PATH: "
            "install one, or use --set export_config.format=EAGER"
        )
    return asked
