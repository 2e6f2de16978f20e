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
from tzgen.checking.dry_run import DryRun, shown_name, transducers
from tzgen.modules.preprocessors import UIHPreprocessor
from tzgen.modules.stu import STULayer
from tzgen.modules.transducer import HSTUTransducer
from tzgen.ops.hstu_attention.mask import MaskSpec, dense_mask

MOST_CONTEXTUAL = 4
EVENTS, PAIRS, CANDIDATES = 6, 4, 3  # PAIRS: events where each is two tokens
WINDOW = 3
REALTIME = 2
FULL_TAIL = 2
TAIL = 3  # history tokens that are left behind a cut
KINDS = ("contextual", "history", "candidates")
SEEN, UNSEEN = "#", "."


@dataclass(frozen=True)
class Picture:
    """A small row of N tokens.

    labels, kinds (index into KINDS) of each token; seen bool [N, N]: row sees column; remarks: what
    is drawn smaller than it is, and the like; times int64 [N] where the mask reads them.
    transducer, spec, tail_len: what is drawn; tail_len 0 where the history is whole.
    """

    transducer: str
    spec: MaskSpec
    tail_len: int
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
        kinds: dict[tuple[MaskSpec, int], list[int]] = {}
        for index, layer in enumerate(transducer.stack.layers):
            assert isinstance(layer, STULayer), "an STUStack holds STULayers"
            kinds.setdefault((layer.mask, tail_len(transducer, index)), []).append(index)
        for (spec, tail), layers in kinds.items():
            which = "all layers" if len(kinds) == 1 else f"layers {layers}"
            title = f"{shown_name(name, transducer)}, {which}"
            names = contextual_names(run, transducer)
            made = picture(transducer, spec, title, names, tail)
            found.append(replace(made, transducer=name))
    return found


def tail_len(transducer: HSTUTransducer, layer: int) -> int:
    """History tokens that a layer is given at most; 0 for all."""
    cut = transducer.stack.truncation
    return cut.tail_len if cut is not None and layer >= cut.split_layer else 0


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
    transducer: HSTUTransducer,
    spec: MaskSpec,
    title: str,
    contextual: Sequence[str],
    tail: int = 0,
) -> Picture:
    """The small row of one mask; with `tail`, what is left of it behind a truncation."""
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
    times = _times(tokens, len(history), candidates)
    if tail:
        left = min(tail, TAIL)
        told = f"; drawn as {left}, to fit the picture" if left < tail else ""
        remarks.append(f"of the history its last {tail} tokens are left (truncation){told}")
        times = torch.cat([times[:tokens], times[tokens + len(history) - left :]])
        history = history[-left:]
    labels = [f"c{n}" for n in range(1, tokens + 1)]
    labels += [*history, *(f"t{n}" for n in range(1, candidates + 1))]
    kinds = [0] * tokens + [1] * len(history) + [2] * candidates
    read = times if spec.timestamp_mask else None
    seen = dense_mask(len(labels), candidates, drawn, read)
    legend = tuple(_legend(contextual, interleaved, transducer, candidates))
    parts = (tuple(labels), tuple(kinds), seen, tuple(remarks), read, legend)
    return Picture("", spec, tail, title, *parts)


def shrink(spec: MaskSpec) -> tuple[MaskSpec, list[str]]:
    """The mask with lengths that a small row can show, and a sentence for each that changed."""
    limits = {
        "contextual_len": MOST_CONTEXTUAL,
        "max_attn_len": WINDOW,
        "realtime_len": REALTIME,
        "sla_k1": WINDOW,
        "sla_k2": min(spec.contextual_len, MOST_CONTEXTUAL) + 1,
        "full_attn_tail": FULL_TAIL,
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


def row_of(
    run: DryRun, name: str, most: int, tail: int = 0
) -> tuple[int, int, Tensor | None] | None:
    """(tokens, candidates, times) of the longest row of the batch with at most `most` tokens.

    With `tail`, as layers behind a truncation get it.
    """
    call = run.attended.get(name)
    if call is None:
        return None
    lengths: Any = call.lengths
    gone = torch.zeros_like(lengths)
    contextual = transducers(run.module)[name].preprocessor.contextual_len
    if tail:
        gone = (lengths - call.num_targets - contextual - tail).clamp(min=0)
    left = lengths - gone
    fitting = torch.where(left <= most, left, -1)
    row = int(fitting.argmax())
    if int(fitting[row]) <= 0:
        return None
    start = int(lengths[:row].sum())
    times = None
    if call.timestamps is not None:
        times = call.timestamps[start : start + int(lengths[row])]
        times = torch.cat([times[:contextual], times[contextual + int(gone[row]) :]])
    return int(left[row]), int(call.num_targets[row]), times
