# SPDX-License-Identifier: Apache-2.0
"""The second screen: what one batch holds, group by group and task by task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tzgen.checking import text
from tzgen.checking.dry_run import DryRun
from tzgen.config.tasks import TaskSpec
from tzgen.data.batch import Batch, Ragged

ROWS_CUT = "truncated/"
OUT_OF_RANGE = "out_of_range/"


def batch_section(run: DryRun) -> str:
    """Groups, ids, histories, labels and losses."""
    lines = text.fields(_read(run))
    lines += ["", *_groups(run), ""]
    lines += text.fields([*_ids(run), *_histories(run), *_gradients(run)])
    lines += ["", *_labels(run), "", *_losses(run)]
    if run.warnings:
        lines += ["", "  warnings", *text.bullets(run.warnings)]
    return text.section("one batch, forward and backward", lines)


def _read(run: DryRun) -> Iterable[tuple[str, str]]:
    yield from run.told
    if run.synthetic:
        return
    rows = run.batch.num_rows
    told = f"the first {text.plural(rows, 'row')} in file order"
    if run.tried < rows:
        told += f"; {run.tried} of them through the model, which is enough for shapes and costs"
    yield "read", told


def _groups(run: DryRun) -> list[str]:
    kinds = {group.name: group.kind for group in run.plan.groups}
    names = {
        group.name: [
            *(column.feature for column in group.columns),
            *(encoder.name for encoder in group.encoders),
        ]
        for group in run.plan.groups
    }
    for group in run.plan.groups:
        if group.query:
            names[f"{group.name}.query"] = [column.feature for column in group.query]
    widths = run.module.embeddings.widths
    rows = []
    for name, value in run.groups.items():
        tensor = value.values if isinstance(value, Ragged) else value
        listed = zip(names.get(name, []), widths.get(name, ()), strict=False)
        rows.append(
            (
                name,
                kinds.get(name, ""),
                f"{list(tensor.shape)}",
                str(tensor.dtype).removeprefix("torch."),
                _steps(value),
                ", ".join(f"{feature} ({width})" for feature, width in listed),
            )
        )
    header = ("group", "type", "shape", "dtype", "steps a row", "features (width)")
    return text.table(header, rows, align="lllllw")


def _steps(value: Tensor | Ragged) -> str:
    if not isinstance(value, Ragged) or not value.lengths.numel():
        return ""
    lengths = value.lengths
    return f"{int(lengths.min())}..{int(lengths.max())}, mean {float(lengths.float().mean()):.1f}"


def _ids(run: DryRun) -> Iterable[tuple[str, str]]:
    data = run.pipeline.config.data_config
    policy = data.DESCRIPTOR.fields_by_name["out_of_range_ids"].enum_type.values_by_number[
        data.out_of_range_ids
    ].name
    found = {
        name.removeprefix(OUT_OF_RANGE): number
        for name, number in run.batch.counters.items()
        if name.startswith(OUT_OF_RANGE) and number
    }
    listed = []
    for name, number in found.items():
        ids = run.batch.ids.get(name)
        # DEFAULT without a default drops the id: then it is not among those that are left
        whole = number if ids is None else max(ids.values.numel(), number)
        listed.append(f"{name} {text.share(number, whole)}")
    yield "out-of-range ids", f"{', '.join(listed) or 'none'} (out_of_range_ids {policy})"


def _histories(run: DryRun) -> Iterable[tuple[str, str]]:
    """Rows that lose events to sequence_length, and rows with more tokens than max_seq_len."""
    limits = {f.sequence_name or f.name: f.sequence_length for f in run.pipeline.features}
    cut = [
        f"{name} {text.share(number, run.batch.num_rows)} of rows, to the newest {limits.get(name, 0)}"
        for name, number in run.batch.counters.items()
        if name.startswith(ROWS_CUT)
        for name in [name.removeprefix(ROWS_CUT)]
    ]
    yield "truncated", ", ".join(cut) or "no row is longer than its sequence_length"
    for call in run.attended.values():
        most = max_seq_len(run.pipeline.config)
        told = (
            f"{float(call.lengths.float().mean()):.1f} a row (contextual, history and candidates),"
            f" at most {int(call.lengths.max())}"
        )
        if most:
            over = int((call.lengths > most).sum())
            told += f"; above max_seq_len {most}: {text.share(over, call.lengths.numel())} of rows"
        yield "tokens", told


def max_seq_len(config: Any) -> int:
    """The model's token budget of a row; 0 where it has none."""
    model = getattr(config.model_config, config.model_config.WhichOneof("model"))
    known = "max_seq_len" in model.DESCRIPTOR.fields_by_name
    return int(model.max_seq_len) if known else 0


def _gradients(run: DryRun) -> Iterable[tuple[str, str]]:
    if run.silent:
        yield "no gradient", f"reaches {', '.join(run.silent)}: unused, or frozen by the config"


def _labels(run: DryRun) -> list[str]:
    rows = []
    for task in run.pipeline.tasks:
        label = label_of(task, run.batch)
        logits = run.output.outputs.logits.get(task.name)
        rows.append(
            (
                task.name or "(only)",
                task.label_name,
                str(task.task_bitmask or ""),
                str(task.num_class),
                text.count(label.numel()),
                f"{float(label.double().mean()):.4f}" if label.numel() else "",
                "" if logits is None else str(list(logits.shape)),
            )
        )
    header = ("task", "label", "bits", "classes", "labels", "mean", "logits")
    return text.table(header, rows, align="llrrrrl")


def label_of(task: TaskSpec, batch: Batch) -> Tensor:
    """The task's label of each example: 1 where any of its bits is set, else the column; [N]."""
    label = batch.labels[task.label_name]
    values = (label.values if isinstance(label, Ragged) else label).reshape(-1)
    if task.task_bitmask:
        return (values.to(torch.int64) & task.task_bitmask) != 0
    return values


def _losses(run: DryRun) -> list[str]:
    rows = [
        (name, f"{_mean(term):.4f}", f"{term.weight:g}", f"{float(term.count):g}")
        for name, term in run.output.terms.items()
    ]
    rows.append(("what is minimised", f"{float(run.output.loss):.4f}", "", ""))
    return text.table(("loss", "mean", "weight", "over"), rows, align="lrrr")


def _mean(term: Any) -> float:
    return float(term.total) / max(float(term.count), 1e-12)
