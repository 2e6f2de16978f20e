# SPDX-License-Identifier: Apache-2.0
"""Items that were given the same codes: what to do about it, for the whole catalogue at once.

    none                 they share the ID; recommending it means choosing among them
    suffix               one more code numbers them: 0, 1, 2, ... (TIGER)
    next_best            all but `capacity` of them move to the nearest free code of the last level
    sinkhorn_last_level  as next_best, but the items of a prefix compete: their costs are balanced
                         first, so that no code is wanted by more than it can hold (LC-Rec, LETTER)

Items are taken in the order given (callers sort by item id), so the result does not depend on how
they were read. IDs that are published already (`taken`) keep their items. There is no loop over
items: only over candidates and iterations. Numbers of items N, levels S, candidates C.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from tzgen.errors import UserError
from tzgen.sid.space import LARGEST, Ints, SidSpace, group_ranks, group_sizes

Floats = NDArray[np.float64]
POLICIES = ("suffix", "next_best", "sinkhorn_last_level", "none")
BY_CANDIDATES = ("next_best", "sinkhorn_last_level")
SINKHORN_ROUNDS, SHARPNESS = 50, 10.0
LEAST = 1e-300  # keeps a cell that is far away above one that is full


@dataclass(frozen=True)
class Resolution:
    """codes [N, S] or, with a suffix, [N, S + 1] and their space; `slot` int64 [N]: the item's
    place among those of its final ID; `unplaced` bool [N]: no free code was left among the
    candidates, so the ID holds more items than `capacity`."""

    codes: Ints
    space: SidSpace
    slot: Ints
    unplaced: NDArray[np.bool_]

    @property
    def unique_ratio(self) -> float:
        """Distinct IDs over items."""
        return len(np.unique(self.space.keys(self.codes))) / max(len(self.codes), 1)


@dataclass(frozen=True)
class Candidates:
    """Codes of the last level each item could take, nearest first, int64 [N, C], and what they
    cost, float64 [N, C] (None: only their order is known)."""

    codes: Ints
    costs: Floats | None = None


def check_policy(policy: str, *, offered: bool) -> None:
    """Refuse a policy that is not known, or that chooses among candidates and is offered none."""
    if policy not in POLICIES:
        raise UserError(f"collision policy {policy!r}: expected one of {', '.join(POLICIES)}")
    if policy in BY_CANDIDATES and not offered:
        raise UserError(
            f"collision policy {policy} needs alternatives: set candidate_output_config {{ "
            "enabled: true topk: ... } in the tokenizer (sid_opq has none) and predict again, "
            "which adds the column candidate_codes; or use the policy suffix"
        )


def resolve(
    codes: Ints,
    space: SidSpace,
    policy: str,
    *,
    candidates: Candidates | None = None,
    capacity: int = 1,
    suffix_size: int = 0,
    taken: Ints | None = None,
) -> Resolution:
    """Final IDs of the items `codes` [N, S].

    taken: final IDs [M, S or S + 1] that are published; theirs is the space that is kept.
    suffix_size: codes of the extra level; 0: the largest group.
    Raises UserError when the policy needs candidates that are not there, or the suffix overflows.
    """
    check_policy(policy, offered=candidates is not None)
    space.check(codes)
    if policy == "suffix":
        return _suffixes(codes, space, suffix_size, taken)
    if policy == "none":
        before = np.empty((0, space.levels), np.int64) if taken is None else taken
        slot = group_ranks(space.keys(np.concatenate([before, codes])))[len(before) :]
        return Resolution(codes, space, slot, np.zeros(len(codes), dtype=np.bool_))
    assert candidates is not None, "check_policy has refused it"
    if prod(space.codebook) > LARGEST:
        raise UserError(
            f"collision policy {policy}: the codebook {list(space.codebook)} has more IDs than "
            "63 bits; use the policy suffix"
        )
    _check_candidates(candidates, space, len(codes))
    if policy == "sinkhorn_last_level":
        candidates = _balanced(codes, space, candidates, capacity, taken)
    else:
        candidates = _own_first(codes, candidates)
    return _moved(codes, space, candidates, capacity, taken)


def _suffixes(codes: Ints, space: SidSpace, size: int, taken: Ints | None) -> Resolution:
    before = np.empty((0, space.levels + 1), np.int64) if taken is None else taken
    keys = space.keys(np.concatenate([before[:, :-1], codes]))
    old, new = keys[: len(before)], keys[len(before) :]
    ranks = group_ranks(new)
    if len(before):  # number on from the largest published suffix of the same codes
        order = np.argsort(old, kind="stable")
        values, starts = np.unique(old[order], return_index=True)
        largest = np.maximum.reduceat(before[order, -1], starts)
        at = np.searchsorted(values, new).clip(max=len(values) - 1)
        ranks = ranks + np.where(values[at] == new, largest[at] + 1, 0)
    needed = max(int(ranks.max(initial=-1)), int(before[:, -1].max(initial=-1))) + 1
    if size and needed > size:
        row = int(ranks.argmax())
        raise UserError(
            f"suffix {needed - 1} is needed for the codes {codes[row].tolist()} and there are "
            f"{size}: raise --suffix_size when the bundle is first made, or use larger codebooks"
        )
    wider = SidSpace((*space.codebook, size or max(needed, 1)))
    full = np.concatenate([codes, ranks[:, None]], axis=1)
    return Resolution(
        full, wider, np.zeros(len(codes), np.int64), np.zeros(len(codes), dtype=np.bool_)
    )


def _check_candidates(candidates: Candidates, space: SidSpace, items: int) -> None:
    found = candidates.codes
    if found.ndim != 2 or len(found) != items:
        raise UserError(f"candidate codes of shape {found.shape}: expected [{items}, topk]")
    costs = candidates.costs
    if costs is not None and costs.shape != found.shape:
        raise UserError(f"candidate scores of shape {costs.shape}: expected {found.shape}")
    if costs is not None and not np.isfinite(costs).all():
        row, column = (int(axis[0]) for axis in np.nonzero(~np.isfinite(costs)))
        raise UserError(
            f"the score of candidate {column} of row {row} is {costs[row, column]}: expected a "
            "distance. Look at the vectors that the codes are of"
        )
    wrong = (found < 0) | (found >= space.codebook[-1])
    if wrong.any():
        row, column = (int(axis[0]) for axis in np.nonzero(wrong))
        raise UserError(
            f"candidate {column} of row {row} is {found[row, column]}; expected a code of the "
            f"last level, 0 to {space.codebook[-1] - 1}"
        )


class _Occupancy:
    """Items per ID, as sorted keys and counts."""

    def __init__(self, keys: Ints) -> None:
        self.keys, self.counts = np.unique(keys, return_counts=True)

    def of(self, keys: Ints) -> Ints:
        if not len(self.keys):
            return np.zeros(len(keys), dtype=np.int64)
        at = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.counts[at], 0)

    def add(self, keys: Ints) -> None:
        both = np.concatenate([self.keys, keys])
        weight = np.concatenate([self.counts, np.ones(len(keys), dtype=np.int64)])
        self.keys, inverse = np.unique(both, return_inverse=True)
        self.counts = np.bincount(inverse.reshape(-1), weight).astype(np.int64)


def _moved(
    codes: Ints, space: SidSpace, candidates: Candidates, capacity: int, taken: Ints | None
) -> Resolution:
    """Rounds: everybody still without a place asks for the next candidate; the first come, in the
    order of cost and then of items, are served."""
    prefix = _prefixes(codes, space) * space.codebook[-1]
    occupancy = _Occupancy(space.keys(taken) if taken is not None else np.empty(0, np.int64))
    final = codes[:, -1].copy()
    pending = np.arange(len(codes))
    for choice in range(candidates.codes.shape[1]):
        if not len(pending):
            break
        if candidates.costs is not None:
            pending = pending[np.argsort(candidates.costs[pending, choice], kind="stable")]
        wanted = candidates.codes[pending, choice]
        keys = prefix[pending] + wanted
        served = group_ranks(keys) < capacity - occupancy.of(keys)
        final[pending[served]] = wanted[served]
        occupancy.add(keys[served])
        pending = np.sort(pending[~served])
    unplaced = np.zeros(len(codes), dtype=np.bool_)
    unplaced[pending] = True
    resolved = np.concatenate([codes[:, :-1], final[:, None]], axis=1)
    before = np.empty((0, space.levels), np.int64) if taken is None else taken
    slot = group_ranks(space.keys(np.concatenate([before, resolved])))[len(before) :]
    return Resolution(resolved, space, slot, unplaced)


def _prefixes(codes: Ints, space: SidSpace) -> Ints:
    """Key of the codes before the last, int64 [N]; 0 where there is one level."""
    if space.levels == 1:
        return np.zeros(len(codes), dtype=np.int64)
    return space.prefix_keys(codes, space.levels - 1)


def _own_first(codes: Ints, candidates: Candidates) -> Candidates:
    """The same candidates with the item's own code before them, at its cost among them."""
    own = codes[:, -1:]
    costs = None
    if candidates.costs is not None:
        hit = candidates.codes == own
        at = hit.argmax(axis=1)[:, None]
        cost = np.take_along_axis(candidates.costs, at, axis=1)
        least = candidates.costs.min(axis=1, keepdims=True)
        cost = np.where(hit.any(axis=1, keepdims=True), cost, least)
        costs = np.concatenate([cost, candidates.costs], axis=1)
    return Candidates(np.concatenate([own, candidates.codes], axis=1), costs)


def _balanced(
    codes: Ints, space: SidSpace, candidates: Candidates, capacity: int, taken: Ints | None
) -> Candidates:
    """Candidates in the order of an entropic transport plan of each crowded prefix.

    Rows of the plan sum to one; a cell (prefix, code) may hold `capacity` at most, less what is
    published there, and a full one comes last. Prefixes without a collision keep their order.
    """
    if candidates.costs is None:
        raise UserError(
            "collision policy sinkhorn_last_level needs the candidates' distances: the column "
            "candidate_scores of the tokenizer's predict output"
        )
    published = _Occupancy(space.keys(taken) if taken is not None else np.empty(0, np.int64))
    keys = space.keys(codes)
    crowded = group_sizes(keys) + published.of(keys) > capacity
    prefix = _prefixes(codes, space)
    rows = np.flatnonzero(np.isin(prefix, prefix[crowded]))
    if not len(rows):
        return candidates
    cells = (prefix[rows, None] * space.codebook[-1] + candidates.codes[rows]).reshape(-1)
    cells, cell = np.unique(cells, return_inverse=True)
    cell = cell.reshape(len(rows), -1)
    room = np.maximum(capacity - published.of(cells), 0)
    cost = candidates.costs[rows]
    scale = max(float((cost - cost.min(axis=1, keepdims=True)).std()), 1e-12)
    plan = np.exp(-SHARPNESS * (cost - cost.min(axis=1, keepdims=True)) / scale)
    plan = np.where(room[cell] > 0, np.maximum(plan, LEAST), 0.0)
    for _ in range(SINKHORN_ROUNDS):
        plan /= np.maximum(plan.sum(axis=1, keepdims=True), LEAST)
        mass = np.bincount(cell.reshape(-1), plan.reshape(-1))
        plan /= np.maximum(mass / np.maximum(room, 1), 1.0)[cell]
    order = np.argsort(-plan, axis=1, kind="stable")
    new_codes, new_costs = candidates.codes.copy(), candidates.costs.copy()
    new_codes[rows] = np.take_along_axis(candidates.codes[rows], order, axis=1)
    new_costs[rows] = np.take_along_axis(-plan, order, axis=1)
    return Candidates(new_codes, new_costs)
