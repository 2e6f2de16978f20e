# SPDX-License-Identifier: Apache-2.0
"""The quality report of a bundle: Markdown for people, JSON for programs, PNG plots to look at.

report.md  report.json  levels.png  groups.png
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import pyarrow as pa

from tzgen.errors import UserError
from tzgen.log import LOGGER
from tzgen.sid.bundle import Bundle
from tzgen.sid.quality import (
    Floats,
    NeighbourShare,
    Quality,
    largest_groups,
    measure,
    nearest_items,
    neighbour_share,
)
from tzgen.sid.space import Ints, SidSpace

GROUPS, MEMBERS, EXAMPLES, NEAR = 10, 6, 5, 5
TITLE = 80  # characters


def write_report(
    bundle: Bundle, folder: Path, *, titles: Sequence[str] | None, vectors: Floats | None
) -> Path:
    """Measure the bundle into `folder`; the path of report.md.

    titles: one an item, in the order of the bundle's table; vectors float32 [N, D], likewise.
    """
    table = bundle.table
    before = SidSpace(table.space.codebook[: table.origin.shape[1]])
    qualities = {
        "tokenizer": measure(table.origin, before),
        "published": measure(table.codes, table.space),
    }
    overlap = None if vectors is None else neighbour_share(table, vectors)
    folder.mkdir(parents=True, exist_ok=True)
    body = {
        "bundle": str(bundle.path),
        "sid_hash": table.sid_hash,
        "policy": bundle.manifest.get("policy"),
        "quality": {name: quality.as_json() for name, quality in qualities.items()},
        "neighbour_share": None if overlap is None else overlap.__dict__,
    }
    _write(folder / "report.json", json.dumps(body, indent=1))
    plots = _plot(qualities, table.origin, before, folder)
    named = table.item_id.to_pylist() if titles is None else titles
    names = [shorten(str(name), TITLE, placeholder="...") for name in named]
    text = _markdown(bundle, qualities, overlap, names, vectors, plots)
    _write(folder / "report.md", text)
    return folder / "report.md"


def _markdown(
    bundle: Bundle,
    qualities: dict[str, Quality],
    overlap: NeighbourShare | None,
    names: Sequence[Any],
    vectors: Floats | None,
    plots: Sequence[str],
) -> str:
    table = bundle.table
    lines = [
        f"# Semantic IDs {bundle.path.name}",
        "",
        f"{len(table):,} items, codebook {list(table.space.codebook)}, collision policy "
        f"{bundle.manifest.get('policy', 'not said')}, hash {table.sid_hash[:12]}.",
        "",
        "| | items | distinct IDs | unique ratio | items alone | largest group |",
        "|---|---|---|---|---|---|",
    ]
    for name, q in qualities.items():
        lines.append(
            f"| {name} | {q.items:,} | {q.distinct:,} | {q.unique_ratio:.4f} | {q.items_alone:,} "
            f"| {q.largest_group} |"
        )
    lines += ["", "## Levels", "", *_levels(qualities["published"], overlap)]
    lines += ["", *(f"![{Path(plot).stem}]({plot})" for plot in plots)]
    before = SidSpace(table.space.codebook[: table.origin.shape[1]])
    lines += ["", "## Most crowded IDs of the tokenizer", ""]
    groups = largest_groups(table.origin, before, GROUPS)
    for rows in groups:
        shown = "; ".join(str(names[row]) for row in rows[:MEMBERS])
        more = f"; and {len(rows) - MEMBERS} more" if len(rows) > MEMBERS else ""
        lines.append(f"- {tuple(table.origin[rows[0]].tolist())}, {len(rows)} items: {shown}{more}")
    if not groups:
        lines.append("None: every item has an ID of its own.")
    lines += ["", "## Items with the nearest IDs", "", *_nearest(table.codes, table.space, names)]
    if vectors is not None:
        lines += ["", "## Items with the nearest vectors", ""]
        lines += _nearest_by_vector(vectors, table.codes, names)
    return "\n".join(lines) + "\n"


def _levels(quality: Quality, overlap: NeighbourShare | None) -> list[str]:
    head = "| level | codes | used | perplexity | busiest code | prefixes | prefix entropy, bits |"
    rule = "|---|---|---|---|---|---|---|"
    if overlap is not None and overlap.share:
        head += " neighbours with this prefix | by chance |"
        rule += "---|---|"
    lines = [head, rule]
    for index, (level, prefix) in enumerate(zip(quality.levels, quality.prefixes, strict=True)):
        line = (
            f"| {index} | {level.size} | {level.used} | {level.perplexity:.1f} | {level.busiest} "
            f"| {prefix.distinct:,} | {prefix.entropy:.2f} of {np.log2(quality.items):.2f} |"
        )
        if overlap is not None and overlap.share:
            line += f" {overlap.share[index]:.3f} | {overlap.chance[index]:.4f} |"
        lines.append(line)
    return [*lines, ""]


def _examples(count: int) -> Ints:
    """Rows spread over the catalogue, always the same ones."""
    return np.unique(np.linspace(0, count - 1, EXAMPLES).astype(np.int64))


def _nearest(codes: Ints, space: SidSpace, names: Sequence[Any]) -> list[str]:
    """For a few items, those that share the longest prefix."""
    lines = []
    for row in _examples(len(codes)):
        shared = np.cumprod(codes == codes[row], axis=1).sum(axis=1)
        shared[row] = -1
        near = np.argsort(-shared, kind="stable")[: min(NEAR, len(codes) - 1)]
        told = "; ".join(f"{names[i]} (codes shared: {shared[i]})" for i in near)
        lines.append(f"- {names[row]} {tuple(codes[row].tolist())}: {told}")
    return lines


def _nearest_by_vector(vectors: Floats, codes: Ints, names: Sequence[Any]) -> list[str]:
    lines = []
    count = min(NEAR, len(codes) - 1)
    for row in _examples(len(codes)) if count else []:
        near = nearest_items(vectors, np.array([row]), count)[0]
        told = "; ".join(f"{names[i]} {tuple(codes[i].tolist())}" for i in near)
        lines.append(f"- {names[row]} {tuple(codes[row].tolist())}: {told}")
    return lines


def _plot(
    qualities: dict[str, Quality], origin: Ints, space: SidSpace, folder: Path
) -> tuple[str, ...]:
    """levels.png: how often each code is used, by rank; groups.png: sizes of colliding groups."""
    try:
        import matplotlib
    except ImportError:
        LOGGER.info("no plots in %s: pip install 'tzgen[plots]'", folder)
        return ()  # the report says the same in numbers
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, space.levels, figsize=(4 * space.levels, 3), squeeze=False)
    for level, axis in enumerate(axes[0]):
        uses = np.sort(np.bincount(origin[:, level], minlength=space.codebook[level]))[::-1]
        axis.bar(np.arange(len(uses)), uses, width=1.0)
        axis.axhline(len(origin) / len(uses), color="black", linewidth=0.8, linestyle="--")
        perplexity = qualities["tokenizer"].levels[level].perplexity
        axis.set_title(f"level {level}: perplexity {perplexity:.0f} of {len(uses)}")
        axis.set_xlabel("code, by use")
        axis.set_ylabel("items")
    figure.tight_layout()
    figure.savefig(folder / "levels.png", dpi=100)
    plt.close(figure)
    _, counts = np.unique(space.keys(origin), return_counts=True)
    sizes, groups = np.unique(counts, return_counts=True)
    figure, axis = plt.subplots(figsize=(6, 3))
    axis.bar(sizes, groups)
    axis.set_yscale("log")
    axis.set_xlabel("items that share an ID of the tokenizer")
    axis.set_ylabel("IDs")
    figure.tight_layout()
    figure.savefig(folder / "groups.png", dpi=100)
    plt.close(figure)
    return ("levels.png", "groups.png")


def rows_for(bundle: Bundle, item_id: pa.Array, what: str) -> Ints:
    """Where each item of the bundle stands in `item_id`; one that is missing is named."""
    rows = np.full(len(bundle.table), -1, dtype=np.int64)
    found = bundle.table.rows_of(item_id)
    rows[found[found >= 0]] = np.flatnonzero(found >= 0)
    if (rows < 0).any():
        name = bundle.table.item_id[int((rows < 0).argmax())].as_py()
        raise UserError(
            f"{int((rows < 0).sum())} items of the bundle are not among the {what}, e.g. {name!r}: "
            "give the items that the bundle was made of"
        )
    return rows


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
