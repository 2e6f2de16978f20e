# SPDX-License-Identifier: Apache-2.0
"""The image: its cells are the mask's, and what cannot be drawn is refused beforehand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from checking.worlds import ULTRA, hstu_rows, tried
from tzgen.checking import plot as module
from tzgen.checking.dry_run import DryRun
from tzgen.checking.layout import pictures
from tzgen.checking.plot import plot, require_plotting
from tzgen.errors import UserError

pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")


def test_cells_have_the_colour_of_what_is_seen(hstu: DryRun) -> None:
    from matplotlib.colors import to_rgb

    (picture,) = pictures(hstu)
    image = module._image(picture.seen, list(picture.kinds))
    for (i, j), seen in np.ndenumerate(picture.seen.numpy()):
        colour = module.COLOURS[picture.kinds[j]] if seen else module.EMPTY
        assert np.allclose(image[i, j], to_rgb(colour)), (i, j)


def test_the_file_holds_both_panels(hstu: DryRun, tmp_path: Path) -> None:
    from matplotlib import image

    path = tmp_path / "mask.png"
    plot(hstu, path)
    pixels = torch.from_numpy(image.imread(path))[..., :3]
    assert pixels.size(1) > 1000
    for half in (pixels[:, : pixels.size(1) // 2], pixels[:, pixels.size(1) // 2 :]):
        for colour in ((42, 157, 143), (74, 111, 165), (224, 122, 63)):
            near = (half * 255 - torch.tensor(colour)).abs().amax(-1) < 2
            assert near.float().mean() > 0.001, colour


def test_each_channel_and_cut_has_its_panels(tmp_path: Path) -> None:
    run = tried(tmp_path, ULTRA, hstu_rows())
    panels = list(module._panels(run))
    assert [small.title for small, _ in panels] == [one.title for one in pictures(run)]
    rows = [row for _, row in panels if row is not None]
    assert [kinds.count(1) for _, kinds in rows] == [6, 6, 4]
    assert not torch.equal(rows[0][0], rows[1][0])


def test_a_batch_of_long_rows_only(
    hstu: DryRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST", 2)
    plot(hstu, tmp_path / "mask.svg")
    assert "no row of the batch has at most 2 tokens" in (tmp_path / "mask.svg").read_text()


def test_models_without_attention_are_refused(tower: DryRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="simple_multi_task has no HSTU layers"):
        plot(tower, tmp_path / "mask.png")
    assert list(tmp_path.iterdir()) == []


def test_bad_paths_are_refused(tmp_path: Path) -> None:
    require_plotting(tmp_path / "a.PNG")
    with pytest.raises(UserError, match=r"a\.gif: expected a file ending in \.png"):
        require_plotting(tmp_path / "a.gif")
    with pytest.raises(UserError, match="folder does not exist"):
        require_plotting(tmp_path / "no" / "a.png")


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tzgen\[plots\]"):
        require_plotting(tmp_path / "a.png")
