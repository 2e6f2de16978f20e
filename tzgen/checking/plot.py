# SPDX-License-Identifier: Apache-2.0
"""--plot: the picture of layout.py as an image, beside the mask of the longest row of the batch."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tzgen.checking.dry_run import DryRun, transducers
from tzgen.checking.layout import KINDS, Picture, pictures, row_of
from tzgen.errors import UserError
from tzgen.ops.hstu_attention.mask import dense_mask

FORMATS = (".png", ".svg", ".pdf")
COLOURS = ("#2a9d8f", "#4a6fa5", "#e07a3f")  # contextual, history, candidates: the column's kind
EMPTY = "#f4f4f2"
LONGEST = 600  # tokens of a drawn row


def require_plotting(path: Path) -> None:
    """Refuse, before any work, a picture that could not be written."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--plot {path}: expected a file ending in {', '.join(FORMATS)}")
    if not path.resolve().parent.is_dir():
        raise UserError(f"--plot {path}: its folder does not exist; make it")
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib: pip install 'tzgen[plots]'")


def plot(run: DryRun, path: Path) -> None:
    """Write the image. Raises UserError for a model that has no such mask."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(_panels(run))
    if not panels:
        kind = run.pipeline.config.model_config.WhichOneof("model")
        raise UserError(f"--plot: {kind} has no HSTU layers, so that there is no mask to draw")
    figure, axes = pyplot.subplots(
        len(panels), 2, figsize=(13, 6.6 * len(panels)), squeeze=False, layout="constrained"
    )
    for (small, row), (left, right) in zip(panels, axes, strict=True):
        _small(left, small)
        _real(right, row)
    _keys(figure)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


Row = tuple[Tensor, list[int]]


def _panels(run: DryRun) -> Iterable[tuple[Picture, Row | None]]:
    """Each picture, and (mask, kinds of the tokens) of a real row under the same MaskSpec."""
    for small in pictures(run):
        found = row_of(run, small.transducer, LONGEST, small.tail_len)
        row = None
        if found is not None:
            length, targets, times = found
            preprocessor = transducers(run.module)[small.transducer].preprocessor
            contextual = preprocessor.contextual_len
            kinds = [0] * contextual + [1] * (length - contextual - targets) + [2] * targets
            row = dense_mask(length, targets, small.spec, times), kinds
        yield small, row


def _image(seen: Tensor, kinds: list[int]) -> Any:
    """RGB [N, N, 3]: the colour of the key's kind where it is seen."""
    from matplotlib.colors import to_rgb

    colours = torch.tensor([to_rgb(colour) for colour in COLOURS])
    empty = torch.tensor(to_rgb(EMPTY))
    keys = colours[torch.tensor(kinds)][None].expand(len(kinds), -1, -1)
    return torch.where(seen[..., None], keys, empty).numpy()


def _borders(axis: Any, kinds: list[int]) -> None:
    for at in range(1, len(kinds)):
        if kinds[at] != kinds[at - 1]:
            axis.axhline(at - 0.5, color="black", linewidth=1)
            axis.axvline(at - 0.5, color="black", linewidth=1)


def _small(axis: Any, one: Picture) -> None:
    count = len(one.labels)
    axis.imshow(_image(one.seen, list(one.kinds)), interpolation="nearest")
    axis.set_xticks(range(count), one.labels, fontsize=9)
    axis.set_yticks(range(count), one.labels, fontsize=9)
    axis.xaxis.tick_top()
    axis.set_xticks([at - 0.5 for at in range(count + 1)], minor=True)
    axis.set_yticks([at - 0.5 for at in range(count + 1)], minor=True)
    axis.grid(which="minor", color="white", linewidth=1.5)
    axis.tick_params(which="both", length=0)
    _borders(axis, list(one.kinds))
    notes = list(one.remarks)
    if one.times is not None:
        timed = zip(one.labels, one.kinds, one.times.tolist(), strict=True)
        notes.append("times: " + ", ".join(f"{n} {t}" for n, kind, t in timed if kind))
    axis.set_xlabel("\n".join(["key: is seen", *notes]), fontsize=9)
    axis.set_ylabel("query: sees")
    axis.set_title(f"a small row of {one.title}", fontsize=11)


def _real(axis: Any, row: Row | None) -> None:
    if row is None:
        axis.axis("off")
        axis.text(0.5, 0.5, f"no row of the batch has at most {LONGEST} tokens", ha="center")
        return
    seen, kinds = row
    axis.imshow(_image(seen, kinds), interpolation="nearest")
    _borders(axis, kinds)
    axis.locator_params(integer=True)
    counts = ", ".join(f"{name} {kinds.count(kind)}" for kind, name in enumerate(KINDS))
    axis.set_title(f"the longest row of the batch: {counts}", fontsize=11)
    axis.set_xlabel(f"key: is seen ({100 * float(seen.float().mean()):.0f} % of all pairs are)")


def _keys(figure: Any) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=c, label=name) for name, c in zip(KINDS, COLOURS, strict=True)]
    handles.append(Patch(facecolor=EMPTY, edgecolor="#cccccc", label="not seen"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
