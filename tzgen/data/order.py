# SPDX-License-Identifier: Apache-2.0
"""In which order an epoch reads the rows: a pure function of (key, seed, epoch).

Row groups of all files are permuted together; consecutive ones form windows; rows are permuted
inside a window. Any part of the order can be computed without the rest, so a run resumes anywhere.
Randomness is the raw stream of numpy's Philox, whose values numpy promises not to change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """Consecutive row groups whose rows are mixed.

    first: its first row in the order. groups int64 [g]: flat indices of its row groups. starts
    int64 [g + 1]: where each begins among the window's rows. rows int64 [n]: place i of the window
    holds its row rows[i]; None keeps them as they lie.
    """

    first: int
    groups: Int64
    starts: Int64
    rows: Int64 | None

    @property
    def num_rows(self) -> int:
        return int(self.starts[-1])

    def at(self, begin: int, end: int) -> Int64:
        """Window rows at places [begin, end)."""
        if self.rows is None:
            return np.arange(begin, end, dtype=np.int64)
        return self.rows[begin:end]

    def locate(self, window_rows: Int64) -> tuple[Int64, Int64]:
        """(group within the window, row within the group) of window rows."""
        group = np.searchsorted(self.starts, window_rows, side="right") - 1
        return group, window_rows - self.starts[group]


class RowOrder:
    """The order of one epoch over row groups with `group_rows` rows each (flat, file order).

    shuffle_window None keeps the file order; n >= 1 mixes rows across n row groups at a time.
    """

    def __init__(
        self, group_rows: Int64, *, key: str, seed: int, epoch: int, shuffle_window: int | None
    ) -> None:
        if shuffle_window is not None and shuffle_window < 1:
            raise ValueError(f"shuffle_window is {shuffle_window}; expected at least 1, or None")
        self._key, self._seed, self._epoch = key, seed, epoch
        self._shuffled = shuffle_window is not None
        groups = np.flatnonzero(group_rows)
        if self._shuffled:
            groups = groups[permutation(len(groups), self._key_of("groups"))]
        self._groups = groups
        self._starts = np.concatenate([[0], np.cumsum(group_rows[groups])]).astype(np.int64)
        self._size = shuffle_window or 1
        self._window_starts = np.append(self._starts[:-1][:: self._size], self._starts[-1])
        self._cached: Window | None = None

    def _key_of(self, part: str) -> str:
        return f"{self._key}/{self._seed}/{self._epoch}/{part}"

    @property
    def num_rows(self) -> int:
        return int(self._starts[-1])

    @property
    def window_starts(self) -> Int64:
        """int64 [windows + 1]: first row of each window, then the number of rows."""
        return self._window_starts

    def window(self, index: int) -> Window:
        first = index * self._size
        last = min(first + self._size, len(self._groups))
        starts = self._starts[first : last + 1] - self._starts[first]
        rows = None
        if self._shuffled:
            rows = permutation(int(starts[-1]), self._key_of(str(index)))
        return Window(int(self._starts[first]), self._groups[first:last], starts, rows)

    def windows(self, start: int, stop: int) -> Iterator[Window]:
        """The windows that hold rows [start, stop) of the order. The last one is remembered."""
        if start >= stop:
            return
        first = int(np.searchsorted(self._window_starts, start, side="right")) - 1
        last = int(np.searchsorted(self._window_starts, stop, side="left"))
        for index in range(first, last):
            if self._cached is None or self._cached.first != self._window_starts[index]:
                self._cached = self.window(index)
            yield self._cached

    def rows(self, start: int, stop: int) -> tuple[Int64, Int64]:
        """(flat row group, row within it) of rows [start, stop) of the order."""
        return self._collect(start, stop, arrange=False)

    def batch(self, start: int, stop: int) -> tuple[Int64, Int64]:
        """The same rows as a batch holds them: by row group, then by row.

        That a batch is laid out so lets a rank read only the row groups that its slice touches,
        instead of every rank decoding everything.
        """
        return self._collect(start, stop, arrange=True)

    def _collect(self, start: int, stop: int, *, arrange: bool) -> tuple[Int64, Int64]:
        groups, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for window in self.windows(start, stop):
            begin = max(start - window.first, 0)
            chosen = window.at(begin, min(stop - window.first, window.num_rows))
            group, row = window.locate(np.sort(chosen) if arrange else chosen)
            groups.append(window.groups[group])
            rows.append(row)
        return np.concatenate(groups), np.concatenate(rows)


def permutation(n: int, key: str) -> Int64:
    """A permutation of range(n) that `key` decides, the same under every numpy and on every CPU.

    Random bits are sorted with the index in their low bits: no ties, so no need of a stable sort.
    """
    digest = hashlib.sha256(key.encode()).digest()
    random = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(n)
    low = np.uint64((1 << n.bit_length()) - 1)
    keyed = (random & ~low) | np.arange(n, dtype=np.uint64)
    keyed.sort()
    return (keyed & low).astype(np.int64)
