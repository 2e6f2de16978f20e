# SPDX-License-Identifier: Apache-2.0
"""The fourth screen: the tokens of one row, and who sees whom, for each kind of HSTU in a model.

The picture is `ops.hstu_attention.mask.dense_mask` of a small row with the model's own MaskSpec;
lengths too large to draw are remarks, and the caption says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tzgen.checking import text
from tzgen.checking.dry_run import DryRun, transducers
from tzgen.modules.preprocessors import UIHPreprocessor
from tzgen.modules.stu import STULayer
from tzgen.modules.transducer import HSTUTransducer
from tzgen.ops.hstu_attention.mask import MaskSpec, dense_mask

MOST_CONTEXTUAL = 4
EVENTS, PAIRS, CANDIDATES = 6, 4, 3  # PAIRS: events where each is two tokens
WINDOW = 3
REALTIME = 2
KINDS = ("contextual", "history", "candidates")
SEEN, UNSEEN = "#", "."


@dataclass(frozen=True)
class Picture:
    """A small row of N tokens.

    labels, kinds (index into KINDS) of each token; seen bool [N, N]: row sees column; remarks: what
    is drawn smaller than it is, and the like; times int64 [N] where the mask reads them.
    """

    title: str
    labels: tuple[str, ...]
    kinds: tuple[int, ...]
    seen: Tensor
    remarks: tuple[str, ...]
    times: Tensor | None
    legend: tuple[tuple[str, str], ...]


def pictures(run: DryRun) -> list[Picture]:
    """One for each distinct mask of each transducer; [] for models without."""
    found = []
    for name, transducer in transducers(run.module).items():
        masks: dict[MaskSpec, list[int]] = {}
        for index, layer in enumerate(transducer.stack.layers):
            assert isinstance(layer, STULayer), "an STUStack holds STULayers"
            masks.setdefault(layer.mask, []).append(index)
        for spec, layers in masks.items():
            which = "all layers" if len(masks) == 1 else f"layers {layers}"
            title = f"{name.removeprefix('head.model.')}, {which}"
            found.append(picture(transducer, spec, title, contextual_names(run, transducer)))
    return found


def contextual_names(run: DryRun, transducer: HSTUTransducer) -> list[str]:
    """What each contextual token holds."""
    count = transducer.preprocessor.contextual_len
    names = [
        str(name)
        for group in run.pipeline.config.model_config.feature_groups
        if group.group_name == "contextual"
        for name in group.feature_names
    ]
    if count == 1:
        return [" + ".join(names)]
    return names if len(names) == count else [""] * count


def picture(
    transducer: HSTUTransducer, spec: MaskSpec, title: str, contextual: Sequence[str]
) -> Picture:
    """The small row of one mask."""
    interleaved = bool(getattr(transducer.preprocessor, "interleave", False))
    has_candidates = not isinstance(transducer.preprocessor, UIHPreprocessor)
    drawn, remarks = shrink(spec)
    if spec.contextual_len != len(contextual):
        told = (
            f"stu.contextual_seq_len makes the mask take {spec.contextual_len} tokens as contextual"
        )
        remarks.append(f"{told}, not {len(contextual)}")
    tokens = min(len(contextual), MOST_CONTEXTUAL)
    events = PAIRS if interleaved else EVENTS
    candidates = CANDIDATES if has_candidates else 0
    history = [f"{c}{e}" for e in range(1, events + 1) for c in ("ha" if interleaved else "h")]
    labels = [f"c{n}" for n in range(1, tokens + 1)]
    labels += [*history, *(f"t{n}" for n in range(1, candidates + 1))]
    kinds = [0] * tokens + [1] * len(history) + [2] * candidates
    times = _times(tokens, len(history), candidates) if spec.timestamp_mask else None
    seen = dense_mask(len(labels), candidates, drawn, times)
    legend = tuple(_legend(contextual, interleaved, transducer, candidates))
    return Picture(title, tuple(labels), tuple(kinds), seen, tuple(remarks), times, legend)


def shrink(spec: MaskSpec) -> tuple[MaskSpec, list[str]]:
    """The mask with lengths that a small row can show, and a sentence for each that changed."""
    limits = {
        "contextual_len": MOST_CONTEXTUAL,
        "max_attn_len": WINDOW,
        "realtime_len": REALTIME,
    }
    smaller = {name: limit for name, limit in limits.items() if getattr(spec, name) > limit}
    told = [
        f"{name} is {getattr(spec, name)}; drawn as {limit}, to fit the picture"
        for name, limit in smaller.items()
    ]
    return replace(spec, **smaller), told  # type: ignore[arg-type]


def _times(contextual: int, history: int, candidates: int) -> Tensor:
    """An event every 10 s; the first candidate was requested before the last two events."""
    events = torch.arange(1, history + 1) * 10
    requests = torch.arange(candidates) * 10 + 10 * (history - 2) + 5
    return torch.cat([torch.zeros(contextual, dtype=torch.int64), events, requests])


def _legend(
    contextual: Sequence[str], interleaved: bool, transducer: HSTUTransducer, candidates: int
) -> Iterable[tuple[str, str]]:
    if contextual:
        named = [f"c{n}{text.TIE}{name}".strip() for n, name in enumerate(contextual, start=1)]
        yield "c", f"contextual: {', '.join(named)}"
    acts = transducer.preprocessor.reads_actions
    if interleaved:
        yield "h a", "history, oldest first: each event is its item (h), then its action (a)"
    else:
        yield "h", f"history, oldest first: an item{' and its action' if acts else ''} in one token"
    if candidates:
        dummy = "; a learned dummy stands for the action" if acts and not interleaved else ""
        yield "t", f"candidates: their states are scored{dummy}"


def layout_section(run: DryRun) -> str:
    """The pictures of a model, or why there are none."""
    found = pictures(run)
    if not found:
        kind = run.pipeline.config.model_config.WhichOneof("model")
        return text.section("tokens and mask", [f"  {kind} has no HSTU layers: nothing to draw"])
    return "\n".join(text.section(f"tokens and mask: {one.title}", draw(one)) for one in found)


def draw(one: Picture) -> list[str]:
    """The picture in ASCII, legend above."""
    parts = [_joined(one, kind) for kind in range(len(KINDS)) if kind in one.kinds]
    lines = [f"  one row = [ {' | '.join(parts)} ]", "", *text.fields(one.legend)]
    lines += ["", "  row sees column: # yes, . no"]
    if one.remarks:
        lines += text.bullets(one.remarks, indent=2)
    lines += ["", "  " + " " * 12 + _cells(one, one.labels) + "   sees"]
    for at, label in enumerate(one.labels):
        if at and one.kinds[at] != one.kinds[at - 1]:
            lines.append("")
        first = not at or one.kinds[at] != one.kinds[at - 1]
        marks = [SEEN if seen else UNSEEN for seen in one.seen[at].tolist()]
        kind = KINDS[one.kinds[at]][:10] if first else ""
        seen = int(one.seen[at].sum())
        lines.append(f"  {kind:<10}{label:>3}{_cells(one, marks)[1:]}   {seen:>4}")
    if one.times is not None:
        timed = zip(one.kinds, one.times.tolist(), strict=True)
        shown = [str(time) if kind else "" for kind, time in timed]
        lines += ["", f"  {'time, s':<12}{_cells(one, shown)}"]
    return lines


def _joined(one: Picture, kind: int) -> str:
    return " ".join(label for label, own in zip(one.labels, one.kinds, strict=True) if own == kind)


def _cells(one: Picture, cells: Sequence[str]) -> str:
    """Cells of 4 characters, a bar where the kind of token changes."""
    line = ""
    for at, cell in enumerate(cells):
        line += " |" if at and one.kinds[at] != one.kinds[at - 1] else ""
        line += f"{cell:>4}"
    return line


def row_of(run: DryRun, name: str, most: int) -> tuple[int, int, Tensor | None] | None:
    """(tokens, candidates, times) of the longest row of the batch with at most `most` tokens."""
    call = run.attended.get(name)
    if call is None:
        return None
    lengths: Any = call.lengths
    fitting = torch.where(lengths <= most, lengths, -1)
    row = int(fitting.argmax())
    if int(fitting[row]) <= 0:
        return None
    start = int(lengths[:row].sum())
    times = None if call.timestamps is None else call.timestamps[start : start + int(lengths[row])]
    return int(lengths[row]), int(call.num_targets[row]), times
