# SPDX-License-Identifier: Apache-2.0
"""The order of the screens: config, differences, one batch, cost, tokens and mask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tzgen import config as configs
from tzgen.checking.batch import batch_section
from tzgen.checking.cost import cost_section
from tzgen.checking.differences import difference_section
from tzgen.checking.dry_run import dry_run
from tzgen.checking.layout import layout_section
from tzgen.checking.lint import lint, lint_section
from tzgen.checking.plot import plot, require_plotting
from tzgen.errors import UserError

REFUSED = 2
MADE_UP = "train_input_path is empty: rows are made up here; training needs --train_input_path."


def check_and_report(
    config: Any,
    *,
    source: str,
    strict: bool = False,
    synthetic: bool = False,
    diff_torcheasyrec: bool = False,
    plot_path: str | None = None,
) -> int:
    """Print everything that is known before training; 0, or 2 when the config has problems.

    Raises UserError when the rows cannot be read, or give losses or gradients that are not finite.
    """
    if plot_path:
        require_plotting(Path(plot_path))
    told = [] if synthetic or config.train_input_path else [MADE_UP]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = lint(config, strict=strict, device=device)
    found = replace(found, notes=(*found.notes, *told))
    _show(lint_section(config, found, source))
    if diff_torcheasyrec:
        _show(difference_section(configs.differences(config)))
    if found.refused:
        return REFUSED
    run = dry_run(config, synthetic=synthetic or bool(told), device=device, source=source)
    _show(batch_section(run))
    _show(cost_section(run, device))
    _show(layout_section(run))
    if plot_path:
        plot(run, Path(plot_path))
        _show(f"picture: {plot_path}")
    if run.unsound:
        raise UserError("\n".join(["this batch must not be trained on:", *run.unsound]))
    _show("ok: no problems; nothing was trained")
    return 0


def _show(block: str) -> None:
    print(block, flush=True)
