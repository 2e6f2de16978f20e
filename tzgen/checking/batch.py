# SPDX-License-Identifier: Apache-2.0
"""The second screen: what one batch holds, group by group and task by task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from tzgen.checking import text
from tzgen.checking.dry_run import DryRun, shown_name, transducers
from tzgen.config.tasks import TaskSpec
from tzgen.data.batch import Batch, Ragged
from tzgen.embeddings import REPEAT
from tzgen.objectives.views import target_of

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
    """A table of the groups, then the features of those that have several."""
    kinds = {group.name: group.kind for group in run.plan.groups}
    members = _members(run)
    rows, wide = [], []
    for name, value in run.groups.items():
        if name == REPEAT:
            continue
        tensor = value.values if isinstance(value, Ragged) else value
        listed = [f"{feature}{text.TIE}({width})" for feature, width in members[name]]
        dtype = str(tensor.dtype).removeprefix("torch.")
        own = listed[0] if len(listed) == 1 else f"{len(listed)} features"
        rows.append((name, kinds.get(name, ""), str(list(tensor.shape)), dtype, _steps(value), own))
        if len(listed) > 1:
            wide.append((name, ", ".join(listed)))
    header = ("group", "type", "shape", "dtype", "steps a row", "feature (width)")
    lines = text.table(header, rows, align="llllll")
    return lines if not wide else [*lines, "", *text.fields(wide)]


def _members(run: DryRun) -> dict[str, list[tuple[str, int]]]:
    """group -> (feature or encoder, its width), as the model gets them."""
    names: dict[str, list[str]] = {}
    for group in run.plan.groups:
        encoders = (encoder.name for encoder in group.encoders)
        names[group.name] = [*(column.feature for column in group.columns), *encoders]
        names[f"{group.name}.query"] = [column.feature for column in group.query]
    widths = run.module.embeddings.widths
    return {name: list(zip(names[name], widths[name], strict=True)) for name in widths}


def _steps(value: Tensor | Ragged) -> str:
    if not isinstance(value, Ragged) or not value.lengths.numel():
        return ""
    lengths = value.lengths
    return f"{int(lengths.min())}..{int(lengths.max())}, mean {float(lengths.float().mean()):.1f}"


def _ids(run: DryRun) -> Iterable[tuple[str, str]]:
    data = run.pipeline.config.data_config
    policy = (
        data.DESCRIPTOR.fields_by_name["out_of_range_ids"]
        .enum_type.values_by_number[data.out_of_range_ids]
        .name
    )
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
        listed.append(f"{name} {text.share(number, whole, 'id')}")
    yield "out-of-range ids", f"{', '.join(listed) or 'none'} (out_of_range_ids {policy})"


def _histories(run: DryRun) -> Iterable[tuple[str, str]]:
    """Rows that lose events to sequence_length, and rows with more tokens than max_seq_len."""
    limits = {f.sequence_name or f.name: f.sequence_length for f in run.pipeline.features}
    cut = []
    for key, number in run.batch.counters.items():
        if key.startswith(ROWS_CUT):
            name = key.removeprefix(ROWS_CUT)
            rows = text.share(number, run.batch.num_rows, "row")
            cut.append(f"{name} in {rows}, to the newest {limits.get(name, 0)}")
    yield "truncated", ", ".join(cut) or "no row is longer than its sequence_length"
    by_name = transducers(run.module)
    for name, call in run.attended.items():
        most, lengths = max_seq_len(run.pipeline.config), call.lengths
        told = f"{float(lengths.float().mean()):.1f} a row, all kinds; at most {int(lengths.max())}"
        if most:
            over = text.share(int((lengths > most).sum()), lengths.numel(), "row")
            told += f"; above max_seq_len {most}: {over}"
        several = len(run.attended) > 1
        yield f"tokens, {shown_name(name, by_name[name])}" if several else "tokens", told
    repeat = run.output.outputs.repeat
    if repeat is not None:
        yield "candidates", f"{int(repeat.sum()):,} in {text.plural(run.tried, 'row')}"


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
    """What the task learns, of each example of the batch, [N]."""
    label = batch.labels[task.label_name]
    return target_of(task, (label.values if isinstance(label, Ragged) else label).reshape(-1))


def _losses(run: DryRun) -> list[str]:
    rows = [
        (name, f"{_mean(term):.4f}", f"{term.weight:g}", f"{float(term.count):g}")
        for name, term in run.output.terms.items()
    ]
    rows.append(("what is minimised", f"{float(run.output.loss):.4f}", "", ""))
    return text.table(("loss", "mean", "weight", "over"), rows, align="lrrr")


def _mean(term: Any) -> float:
    return float(term.total) / max(float(term.count), 1e-12)
