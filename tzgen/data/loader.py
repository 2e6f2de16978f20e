# SPDX-License-Identifier: Apache-2.0
"""Reader -> order -> batches of this rank -> `parse`, in processes or in place.

Global batch k is rows [k B, (k + 1) B) of the epoch's order, B = batch_size * world_size, laid out
by row group and row (`RowOrder.batch`); rank r takes the r-th contiguous slice. Which rows a global
batch holds depends on (data, seed, epoch, shuffle) only, and no batch on the number of workers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from tzgen.data.batch import Batch, Position
from tzgen.data.gather import RankRows
from tzgen.data.order import Int64, RowOrder
from tzgen.data.plan import (
    BatchCost,
    GroupCosts,
    Split,
    SplitByCost,
    SplitByRows,
    bounds_by_cost,
    bounds_by_rows,
    parse_together,
)
from tzgen.data.readers.base import Reader, RowGroups
from tzgen.data.staged import Parse, parse_parts
from tzgen.data.workers import batches_from_workers
from tzgen.errors import UserError
from tzgen.log import warn_once

PARSED_ROWS = 10_000
PARSED_BYTES = 24 << 20  # malloc keeps blocks below 32 MiB; larger ones are fetched anew each time
LARGE_WINDOW = 4 << 30


def rows_at_once(reader: Reader) -> int:
    """Rows that a `Staged` parser gets at a time: many, but not more than 24 MiB of columns."""
    return max(1, min(PARSED_ROWS, PARSED_BYTES // reader.row_bytes))


class BatchLoader:
    """Batches of one rank, the same in every run with the same data, seed and epoch.

    batch_size and min_batch_size count rows per rank; a last batch with fewer than
    min_batch_size * world_size rows is left out (drop_remainder: fewer than a full one). With
    batch_cost, batches are cut by cost instead and batch_size is not used. num_workers 0 works in
    this process. `parse` must be picklable where the reader is not fork_safe; a `Staged` one gets
    the rows of several batches at once, which is a good deal faster for small batches.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        parse: Parse,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        shuffle_window: int = 8,
        drop_remainder: bool = False,
        min_batch_size: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        batch_cost: BatchCost | None = None,
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1 or shuffle_window < 1 or num_workers < 0:
            raise UserError(
                f"data_config: found batch_size {batch_size}, shuffle_window {shuffle_window}, "
                f"num_workers {num_workers}; expected at least 1, 1 and 0."
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        if batch_cost is not None and batch_cost.budget < 1:
            raise UserError("data_config.batch_cost_size: found 0; expected at least 1.")
        self._reader, self._parse = reader, parse
        self._batch_size, self._seed = batch_size, seed
        self._shuffle_window = shuffle_window if shuffle else None
        self._drop_remainder, self._min_batch_size = drop_remainder, min_batch_size
        self._rank, self._world_size = rank, world_size
        self._num_workers = num_workers
        self._batch_cost = batch_cost
        self._pin_memory = pin_memory and torch.cuda.is_available()  # nothing to pin for elsewhere

    @property
    def fingerprint(self) -> str:
        """What a position is valid for: the data, and how it is shuffled."""
        how = f"window{self._shuffle_window}" if self._shuffle_window else "file-order"
        return f"{self._reader.fingerprint}-{how}"

    def num_batches(self, epoch: int, position: Position | None = None) -> int:
        """Batches of an epoch, or what is left of it after `position`."""
        return len(self._bounds(self._order(epoch), self._start(position, epoch))) - 1

    def epoch(self, position: Position | None, epoch: int) -> Iterator[Batch]:
        """This rank's batches from `position` (None: the beginning) to the end of `epoch`.

        Each carries the position after it. A rank gets as many batches as every other, if need be
        with 0 rows.
        """
        order = self._order(epoch)
        self._warn_of_memory(order)
        bounds = self._bounds(order, self._start(position, epoch))
        rows = RankRows(
            self._reader,
            order,
            bounds,
            self._together(order, bounds),
            rank=self._rank,
            split=self._split(order),
            read_ahead=self._num_workers > 0,
        )
        return self._positioned(rows, bounds, epoch)

    def _positioned(self, rows: RankRows, bounds: Int64, epoch: int) -> Iterator[Batch]:
        here = Position(self._seed, epoch, 0, self.fingerprint)
        with closing(self._batches(rows)) as batches:
            for batch, end in zip(batches, bounds[1:].tolist(), strict=True):
                batch.position = replace(here, next_row=end)
                yield batch

    def _together(self, order: RowOrder, bounds: Int64) -> Int64:
        """Batches that are read and, by a Staged parser, parsed at once."""
        rows = rows_at_once(self._reader) * self._world_size
        return parse_together(bounds, order.window_starts, rows)

    def _batches(self, rows: RankRows) -> Generator[Batch]:
        if self._num_workers and rows.batches_per_item:
            yield from batches_from_workers(
                rows,
                self._reader,
                self._parse,
                num_workers=self._num_workers,
                pin_memory=self._pin_memory,
            )
            return
        for some in rows:
            for batch in parse_parts(self._parse, some.rows, some.source, some.sizes):
                yield batch.pin_memory() if self._pin_memory else batch

    def _warn_of_memory(self, order: RowOrder) -> None:
        held = int(np.diff(order.window_starts).max()) * self._reader.row_bytes // self._world_size
        if held > LARGE_WINDOW:
            warn_once(
                f"data_config: a window of {self._shuffle_window or 1} row group(s) takes about "
                f"{held >> 30} GiB in the loader process of each rank. Lower shuffle_window, or "
                "write smaller row groups (10,000 rows)."
            )

    def _order(self, epoch: int) -> RowOrder:
        return RowOrder(
            RowGroups(self._reader.files).rows,
            key=self._reader.fingerprint,
            seed=self._seed,
            epoch=epoch,
            shuffle_window=self._shuffle_window,
        )

    def _bounds(self, order: RowOrder, start: int) -> Int64:
        stop = order.num_rows
        if self._batch_cost is None:
            bounds = bounds_by_rows(start, stop, self._batch_size * self._world_size)
            min_rows = self._batch_size if self._drop_remainder else self._min_batch_size
        else:
            costs = self._costs.of(*order.rows(start, stop))
            bounds = bounds_by_cost(start, costs, self._batch_cost.budget * self._world_size)
            min_rows = stop if self._drop_remainder else self._min_batch_size
        if len(bounds) > 1 and bounds[-1] - bounds[-2] < min_rows * self._world_size:
            bounds = bounds[:-1]
            if start == 0 and len(bounds) == 1:
                raise UserError(
                    f"data_config: {stop} rows do not fill one batch on {self._world_size} "
                    "rank(s), and a last short batch is dropped. Lower batch_size, or unset "
                    "drop_remainder and min_batch_size."
                )
        return bounds

    def _split(self, order: RowOrder) -> Split:
        if self._batch_cost is None:
            return SplitByRows(self._world_size)
        return SplitByCost(self._world_size, order, self._costs)

    @cached_property
    def _costs(self) -> GroupCosts:
        assert self._batch_cost is not None, "costs are asked for only with a cost column"
        return GroupCosts(self._reader, self._batch_cost.column)

    def _start(self, position: Position | None, epoch: int) -> int:
        """First row still to be consumed. Refuses a position of other data or another order."""
        if position is None:
            return 0
        for name, found, now in (
            ("seed", position.seed, self._seed),
            ("epoch", position.epoch, epoch),
            ("fingerprint", position.fingerprint, self.fingerprint),
        ):
            if found != now:
                raise UserError(
                    f"cannot resume: {name} of the saved reader state is {found}, now it is "
                    f"{now}, so the rows would not be the ones that follow. Restore the "
                    "data and the shuffle settings, or start with --continue_train false."
                )
        return position.next_row
