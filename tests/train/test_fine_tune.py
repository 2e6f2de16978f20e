# SPDX-License-Identifier: Apache-2.0
"""Which tensors start from another run's checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tzgen.errors import UserError
from tzgen.protos.train_pb2 import TrainConfig
from tzgen.train import checkpoint
from tzgen.train.environment import Env
from tzgen.train.fine_tune import start_from

ENV = Env(0, 1, 0, torch.device("cpu"))


@pytest.fixture
def donor(tmp_path: Path) -> Path:
    state = {"a": torch.full((2,), 1.0), "b": torch.full((3,), 2.0), "c": torch.full((4,), 3.0)}
    checkpoint.save(
        tmp_path / "donor",
        5,
        env=ENV,
        model=state,
        optimizer={},
        trainer={},
        config_text="",
        manifest={},
    )
    return tmp_path / "donor"


def start(donor: Path, weights: dict[str, torch.Tensor], lines: str | None = None) -> list[str]:
    config = TrainConfig(fine_tune_checkpoint=str(donor))
    if lines is not None:
        path = donor.parent / "map.txt"
        path.write_text(lines)
        config.fine_tune_ckpt_param_map = str(path)
    return start_from(config, weights)


def test_names_and_shapes_must_agree(donor: Path) -> None:
    weights = {"a": torch.zeros(2), "b": torch.zeros(9), "new": torch.zeros(4)}
    assert start(donor, weights) == ["a"]
    assert weights["a"].tolist() == [1, 1]
    assert not weights["b"].any() and not weights["new"].any()


def test_a_map_renames(donor: Path) -> None:
    weights = {"new": torch.zeros(4), "a": torch.zeros(2)}
    assert start(donor, weights, "new\tc\n\n") == ["a", "new"]
    assert weights["new"].tolist() == [3] * 4
    assert start(donor / "model.ckpt-5", {"a": torch.zeros(2)}) == ["a"], "a checkpoint will do"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("new c", r"map.txt:1.*'new name<tab>old name'"),
        ("\nnew\tz", r"map.txt:2: the checkpoint has no 'z'"),
        ("old\tc", r"map.txt:1: this model has no 'old'"),
        ("new\tc\nother\tc", "one stored tensor to two"),
    ],
)
def test_bad_maps_are_named(donor: Path, lines: str, told: str) -> None:
    weights = {"new": torch.zeros(4), "other": torch.zeros(4)}
    with pytest.raises(UserError, match=told):
        start(donor, weights, lines)


def test_nothing_in_common_is_an_error(donor: Path) -> None:
    with pytest.raises(UserError, match="shares no tensor"):
        start(donor, {"x": torch.zeros(1)})
    with pytest.raises(UserError, match="absent"):
        start_from(
            TrainConfig(fine_tune_checkpoint=str(donor), fine_tune_ckpt_param_map="absent.txt"),
            {"a": torch.zeros(2)},
        )
    with pytest.raises(UserError, match="nowhere"):
        start(donor.parent / "nowhere", {"a": torch.zeros(2)})
