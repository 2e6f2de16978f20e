# SPDX-License-Identifier: Apache-2.0
"""What goes into a beam search and comes out of it. B rows, K beams, L levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class BeamOptions:
    """How to search. What has a default is off by default."""

    # Beams after every level; one number for all levels. The last is the number of results.
    beams: int | tuple[int, ...]
    # False: the constraint comes after the log-softmax, a score is the model's own log-probability
    # of the codes. True: before it, the legal codes alone share the probability at every level.
    renormalize: bool = False
    # Logits are divided by it before the log-softmax.
    temperature: float = 1.0
    # Codes outside the smallest set of likeliest legal codes that holds this share are dropped.
    top_p: float = 1.0
    # Draw results without replacement (Gumbel top-k) instead of taking the best.
    sample: bool = False
    # Groups that search one after another and share the beams evenly; a code that earlier groups
    # chose at this level c times costs c * group_penalty (Hamming diversity).
    groups: int = 1
    group_penalty: float = 0.0

    @property
    def plain(self) -> bool:
        """Beams are ranked by their scores alone."""
        return self.top_p == 1 and not self.sample and self.groups == 1

    def widths(self, num_levels: int) -> tuple[int, ...]:
        """Beams after every level; wrong options are a ValueError."""
        beams = (self.beams,) * num_levels if isinstance(self.beams, int) else tuple(self.beams)
        if len(beams) != num_levels or min(beams) < 1:
            raise ValueError(
                f"beams {self.beams} do not fit {num_levels} levels: give one number, or one >= 1 "
                "for every level"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.groups < 1 or any(width % self.groups for width in beams):
            raise ValueError(f"{self.groups} groups cannot share {beams} beams evenly")
        if self.group_penalty < 0:
            raise ValueError(f"group_penalty is {self.group_penalty}; it must not be below 0")
        if self.sample and self.groups > 1:
            raise ValueError("sample and groups exclude each other: samples are diverse already")
        return beams


@dataclass(frozen=True)
class BeamState:
    """The live beams that `step` is asked to continue."""

    codes: Tensor  # int64 [B, K, level], the codes so far
    rows: Tensor | None  # int64 [B * K], which old beam each continues; None at level 0

    @property
    def tokens(self) -> Tensor:
        """The latest code of every beam, int64 [B * K]; not at level 0."""
        return self.codes[:, :, -1].flatten()

    @property
    def num_beams(self) -> int:
        return self.codes.size(1)

    def reorder(self, cache: Tensor) -> Tensor:
        """[B * old K, ...] -> [B * K, ...]: each beam takes along what its parent kept."""
        return cache if self.rows is None else cache.index_select(0, self.rows)


Step = Callable[[int, BeamState], Tensor]

# One level in one pass, see tzgen/ops/trie_level: (scores, nodes, beams, codes) of the kept beams.
LevelOp = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class BeamResult:
    """K results a row, best first; places beyond the valid ones are filled as said."""

    codes: Tensor  # int64 [B, K, L], -1
    scores: Tensor  # float32 [B, K], -inf; sums of log-probabilities
    keys: Tensor  # float32 [B, K], -inf; what the search ranked by: perturbed or penalised scores
    leaves: Tensor  # int64 [B, K], -1
    valid: Tensor  # bool [B, K]
