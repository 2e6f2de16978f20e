# SPDX-License-Identifier: Apache-2.0
"""The third screen: parameters, FLOPs, and the bytes of weights and optimizer state, per part."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tzgen.checking import text
from tzgen.checking.dry_run import DryRun
from tzgen.embeddings import dense_parameters, optimizer_spec
from tzgen.embeddings.memory import available_bytes, table_bytes

SHOWN_TABLES = 12
MODEL = "head.model"
ENCODERS = "embeddings.assemble"


@dataclass(frozen=True)
class Part:
    """One row of the table. flops: of a forward, for one row of data; None where not counted."""

    name: str
    shape: str
    parameters: int
    weight_bytes: int
    optimizer_bytes: int
    flops: float | None = None


def cost_section(run: DryRun, device: torch.device) -> str:
    """The table, its total, and whether training fits the memory of this machine."""
    tables, dense = table_parts(run), dense_parts(run)
    header = ("part", "size", "parameters", "weights", "optimizer", "FLOPs a row")
    rows = [_row(part) for part in _shown(tables)] + [_row(part) for part in dense]
    rows.append(_row(total([*tables, *dense], "total", run)))
    lines = text.table(header, rows, align="llrrrr")
    rule = "  " + "-" * (max(len(line) for line in lines) - 2)
    below = 1 + len(_shown(tables))
    lines = [lines[0], rule, *lines[1:below], rule, *lines[below:-1], rule, lines[-1]]
    lines += ["", *text.fields([_flops(run)]), "", *_memory(run, tables, dense, device)]
    return text.section("cost", lines)


def table_parts(run: DryRun) -> list[Part]:
    """Every embedding table as training will allocate it, largest first."""
    message = run.pipeline.config.train_config.sparse_optimizer
    spec = optimizer_spec(message) if message.WhichOneof("optimizer") else None
    parts = []
    for table in run.plan.tables.values():
        weights = table_bytes(table, None)
        parts.append(
            Part(
                table.name,
                f"{table.num_embeddings:,} x {table.embedding_dim} {table.data_type}"
                + ("" if table.trainable else ", frozen"),
                table.num_embeddings * table.embedding_dim,
                weights,
                table_bytes(table, spec, weights=False),
            )
        )
    return sorted(parts, key=lambda part: -part.weight_bytes)


def dense_parts(run: DryRun) -> list[Part]:
    """The model's parts, and the encoders of numbers and sequences below it."""
    parameters = dict(dense_parameters(run.module))
    state = dense_state_bytes(run.pipeline.config, parameters)
    found = []
    for name, prefix in _prefixes(run.module):
        mine = [n for n in parameters if n == prefix or n.startswith(f"{prefix}.")]
        flops = _flops_below(run, prefix)
        if not mine and not flops:
            continue
        found.append(
            Part(
                name,
                "",
                sum(parameters[n].numel() for n in mine),
                sum(parameters[n].numel() * parameters[n].element_size() for n in mine),
                sum(state[n] for n in mine),
                flops / run.tried,
            )
        )
    return found


def dense_state_bytes(config: Any, parameters: Mapping[str, nn.Parameter]) -> dict[str, int]:
    """Bytes that the optimizer and the moving average hold for each dense parameter."""
    if not config.HasField("train_config"):
        return dict.fromkeys(parameters, 0)
    message = config.train_config.dense_optimizer
    copies = {}
    for name, parameter in parameters.items():
        rules = (p for p in message.part_optimizers if re.fullmatch(p.regex_pattern, name))
        rule = next(rules, message)
        kind = rule.WhichOneof("optimizer")
        wide = 0 if kind is None else _states(kind, getattr(rule, kind))
        wide += message.HasField("ema")
        copies[name] = wide * parameter.numel() * parameter.element_size()
        if not parameter.requires_grad:
            copies[name] = 0
    return copies


def _states(kind: str, options: Any) -> int:
    """Tensors as large as the parameter that torch's optimizer keeps for it."""

    def has(name: str) -> bool:
        return name in options.DESCRIPTOR.fields_by_name and bool(getattr(options, name))

    always = {"sgd": 0, "adagrad": 1, "adam": 2, "adamw": 2, "adadelta": 2, "rmsprop": 1}
    optional = sum(has(name) for name in ("momentum", "amsgrad", "centered"))
    return always[kind.removesuffix("_optimizer")] + optional


def total(parts: Iterable[Part], name: str, run: DryRun) -> Part:
    """The sum, with all FLOPs of the forward, those outside the parts included."""
    listed = list(parts)
    flops = sum(run.flops.get("Global", {}).values()) / run.tried
    return Part(
        name,
        "",
        sum(part.parameters for part in listed),
        sum(part.weight_bytes for part in listed),
        sum(part.optimizer_bytes for part in listed),
        flops,
    )


def _flops_below(run: DryRun, prefix: str) -> int:
    """FLOPs of a module's forward; of what it holds where it is only a container (ModuleList)."""
    if prefix in run.flops:
        return sum(run.flops[prefix].values())
    below = run.module.get_submodule(prefix).named_children()
    return sum(_flops_below(run, f"{prefix}.{child}") for child, _ in below)


def _prefixes(module: nn.Module) -> list[tuple[str, str]]:
    """(name shown, module path) of the parts: children of the model, or theirs where they only hold
    other modules together."""
    found = [("feature encoders", ENCODERS)]
    for name, child in module.get_submodule(MODEL).named_children():
        below = [key for key, inner in child.named_children() if _has_parameters(inner)]
        holds = isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        whole = holds or len(below) < 2 or _has_parameters(child, recurse=False)
        inner = [name] if whole else [f"{name}.{key}" for key in below]
        found += [(key, f"{MODEL}.{key}") for key in inner]
    return [*found, ("objective", "head.objective")]


def _has_parameters(module: nn.Module, recurse: bool = True) -> bool:
    return any(True for _ in module.parameters(recurse=recurse))


def _shown(tables: list[Part]) -> list[Part]:
    """The largest tables, the rest as one."""
    if len(tables) <= SHOWN_TABLES:
        return tables
    rest = tables[SHOWN_TABLES:]
    merged = Part(
        f"{len(rest)} more tables",
        "",
        sum(part.parameters for part in rest),
        sum(part.weight_bytes for part in rest),
        sum(part.optimizer_bytes for part in rest),
    )
    return [*tables[:SHOWN_TABLES], merged]


def _row(part: Part) -> tuple[str, ...]:
    return (
        part.name,
        part.shape,
        text.count(part.parameters),
        text.size(part.weight_bytes),
        text.size(part.optimizer_bytes),
        "" if part.flops is None else text.short(part.flops),
    )


def _flops(run: DryRun) -> tuple[str, str]:
    counts = run.flops.get("Global", {})
    everything = sum(counts.values())
    attention = sum(n for op, n in counts.items() if "hstu_attention" in str(op))
    told = f"matrix products of a forward, mean of {text.plural(run.tried, 'row')}"
    if attention:
        told += f"; attention over visible pairs is {100 * attention / everything:.1f} % of them"
    return "FLOPs", f"{told}. Forward and backward together take about three times as many."


def _memory(run: DryRun, tables: list[Part], dense: list[Part], device: torch.device) -> list[str]:
    """An estimate for one device that holds all tables."""
    rows = run.pipeline.config.data_config.batch_size
    sums = [
        ("tables", sum(part.weight_bytes for part in tables)),
        ("optimizer of the tables", sum(part.optimizer_bytes for part in tables)),
        ("dense weights and their gradients", 2 * sum(part.weight_bytes for part in dense)),
        ("optimizer of the dense weights", sum(part.optimizer_bytes for part in dense)),
        (f"kept for backward, {text.plural(rows, 'row')}", run.saved_bytes * rows // run.tried),
    ]
    needed, there = sum(number for _, number in sums), available_bytes(device)
    verdict = "fits" if needed <= there else "DOES NOT FIT here: use more ranks, or smaller tables"
    told = f"of {text.size(there)} available on this machine's {device}: {verdict}"
    listed = [(name, text.size(number), "") for name, number in sums]
    header = ("memory of training on one device", "about", "")
    return text.table(header, [*listed, ("sum", text.size(needed), told)], align="lrl")
