# SPDX-License-Identifier: Apache-2.0
"""bool_mask_feature: the values at the places where a mask is true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from tzgen.features.bags import BadValue, Bags, is_text, take, text

_TRUE = ("true", "1", "t", "yes")


@dataclass(frozen=True)
class Mask:
    """Of a row's values those that are masked true; of a sequence, those steps."""

    def __call__(self, inputs: Sequence[Bags]) -> Bags:
        values, mask = inputs
        counts, wanted = _elements(values), _elements(mask)
        if not np.array_equal(counts, wanted):
            row = int(np.flatnonzero(counts != wanted)[0])
            raise BadValue(
                found=f"{counts[row]} values and {wanted[row]} masks",
                expected="as many masks as values",
                remedy="Repair the two columns.",
                row=row,
            )
        keep = np.flatnonzero(_truth(mask))
        rows = np.repeat(np.arange(counts.size), counts)[keep]
        left = np.bincount(rows, minlength=counts.size).astype(np.int64)
        kept = take(values.values, keep)
        return Bags(kept, left) if values.steps is None else Bags(kept, None, left)


def _elements(bags: Bags) -> NDArray[np.int64]:
    """Values per row; a step of a sequence has to have exactly one."""
    if bags.steps is None:
        return bags.all_lengths()
    if bags.lengths is not None:
        raise BadValue(
            found="steps without a value, or with several",
            expected="one value a step under a mask",
            remedy="Repair the column.",
            row=bags.row_of_bag(int(np.flatnonzero(bags.lengths != 1)[0])),
        )
    return bags.steps


def _truth(mask: Bags) -> NDArray[np.bool_]:
    values = mask.values
    if is_text(values):
        lower = pc.utf8_lower(text(values))
        found: NDArray[np.bool_] = np.isin(np.asarray(lower), _TRUE)
        return found
    return np.asarray(values != 0)
