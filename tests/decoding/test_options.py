# SPDX-License-Identifier: Apache-2.0
"""Options are checked before the search; the state reorders what a model keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tzgen.decoding.options import BeamOptions, BeamState


def test_widths_of_every_level() -> None:
    assert BeamOptions(beams=7).widths(3) == (7, 7, 7)
    assert BeamOptions(beams=(4, 8), groups=4).widths(2) == (4, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams 0"),
        ({"beams": (3, 3)}, "do not fit 3 levels"),
        ({"beams": 4, "temperature": 0.0}, "temperature is 0.0"),
        ({"beams": 4, "top_p": 0.0}, "top_p is 0.0"),
        ({"beams": 4, "top_p": 1.5}, "top_p is 1.5"),
        ({"beams": 4, "groups": 2, "group_penalty": -1.0}, "group_penalty is -1.0"),
        ({"beams": 4, "groups": 3}, "3 groups cannot share"),
        ({"beams": 4, "groups": 2, "sample": True}, "exclude each other"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BeamOptions(**options).widths(3)


def test_state_reorders_by_parent() -> None:
    codes = torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])
    state = BeamState(codes, torch.tensor([1, 1, 3, 2]))
    assert state.num_beams == 2 and state.tokens.tolist() == [2, 4, 6, 8]
    cache = torch.arange(8).view(4, 2)
    assert state.reorder(cache).tolist() == [[2, 3], [2, 3], [6, 7], [4, 5]]
    assert BeamState(codes[:, :1, :0], None).reorder(cache) is cache
