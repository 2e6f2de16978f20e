# SPDX-License-Identifier: Apache-2.0
"""Start weights from another run's checkpoint, with renamed parameters where a map says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tzgen.errors import UserError
from tzgen.log import LOGGER
from tzgen.train import checkpoint


def start_from(config: Any, weights: Mapping[str, Any]) -> list[str]:
    """Fill `weights` in place from train_config.fine_tune_checkpoint; names that were loaded.

    A tensor is taken where name (after fine_tune_ckpt_param_map) and shape agree; the others keep
    their initial values and are listed. Raises UserError when none agrees.
    """
    found = checkpoint.open_checkpoint(Path(config.fine_tune_checkpoint))
    checkpoint.verify(found)
    stored = checkpoint.stored_tensors(found.path / "model")
    renamed = read_map(config.fine_tune_ckpt_param_map, weights, stored)
    target: dict[str, Any] = {}
    mine: dict[str, str] = {}
    for name, tensor in weights.items():
        theirs = renamed.get(name, name)
        if theirs in stored and tuple(stored[theirs][0]) == tuple(tensor.size()):
            target[theirs] = tensor
            mine[name] = theirs
    left = sorted(set(weights) - set(mine))
    if not mine:
        raise UserError(
            f"fine_tune_checkpoint {found.path} shares no tensor with this model: it has "
            f"{sorted(stored)[:3]} ..., the model {sorted(weights)[:3]} ...; give "
            "fine_tune_ckpt_param_map, or another checkpoint"
        )
    if len(target) < len(mine):
        raise UserError("fine_tune_ckpt_param_map gives one stored tensor to two parameters")
    checkpoint.load_state(target, found.path / "model")
    LOGGER.info(
        "fine-tuning from %s: %d tensors taken, %d left as initialised",
        found.path,
        len(mine),
        len(left),
    )
    for name in left:
        LOGGER.info("  left as initialised: %s", name)
    return sorted(mine)


def read_map(path: str, weights: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, str]:
    """{new name: stored name} from lines 'new<tab>old'. Raises UserError with the line."""
    if not path:
        return {}
    file = Path(path)
    if not file.is_file():
        raise UserError(f"fine_tune_ckpt_param_map {path} does not exist")
    renamed: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) != 2:
            raise UserError(f"{path}:{number}: found {line!r}; expected 'new name<tab>old name'")
        new, old = (field.strip() for field in fields)
        for name, known, whose in ((new, weights, "this model"), (old, stored, "the checkpoint")):
            if name not in known:
                raise UserError(
                    f"{path}:{number}: {whose} has no {name!r}; it has {sorted(known)[:5]} ..."
                )
        renamed[new] = old
    return renamed
