# SPDX-License-Identifier: Apache-2.0
"""The same rows in the same batches, whoever loads them and wherever a run stopped."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch
from sample_rows import parse, table

from tzgen.data.batch import Batch, Position, Source
from tzgen.data.loader import BatchLoader, rows_at_once
from tzgen.data.plan import BatchCost
from tzgen.data.readers import CsvDataset, ParquetDataset
from tzgen.data.staged import Staged
from tzgen.errors import UserError

GLOBAL_BATCH = 12


def ids(batches: list[Batch]) -> list[list[int]]:
    return [batch.labels["id"].tolist() for batch in batches]  # type: ignore[union-attr]


def global_batches(path: str, world_size: int, **options: object) -> list[list[int]]:
    """Rows of each global batch: the ranks' slices put together."""
    position = options.pop("position", None)
    epoch = options.pop("epoch", 0)
    options.setdefault("batch_size", GLOBAL_BATCH // world_size)
    ranks = []
    for rank in range(world_size):
        loader = BatchLoader(
            ParquetDataset(path), parse=parse, rank=rank, world_size=world_size, seed=3, **options
        )
        ranks.append(ids(list(loader.epoch(position, epoch))))
        assert len(ranks[-1]) == loader.num_batches(epoch, position)
    return [list(chain(*parts)) for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("cost", [None, BatchCost("cost", 40)], ids=["rows", "cost"])
def test_rows_do_not_depend_on_ranks_workers_or_interruption(
    parquet: Callable[..., str], shuffle: bool, cost: BatchCost | None
) -> None:
    path = parquet()
    options: dict = {"shuffle": shuffle, "shuffle_window": 3}
    if cost:
        options["batch_cost"] = cost
    whole = global_batches(path, 1, **options)
    assert sorted(chain(*whole)) == list(range(201))
    assert (list(chain(*whole)) == list(range(201))) is not shuffle
    fingerprint = BatchLoader(
        ParquetDataset(path), parse=parse, batch_size=1, **options
    ).fingerprint
    for world_size in (1, 2, 3):
        if cost:
            options["batch_cost"] = BatchCost("cost", cost.budget // world_size)
            whole = global_batches(
                path,
                1,
                **{
                    **options,
                    "batch_cost": BatchCost("cost", cost.budget // world_size * world_size),
                },
            )
        for workers in (0, 1, 3) if world_size < 3 else (0,):
            got = global_batches(path, world_size, num_workers=workers, **options)
            assert got == whole, f"{world_size} ranks, {workers} workers"
            done = 5
            position = Position(3, 0, sum(map(len, whole[:done])), fingerprint)
            rest = global_batches(
                path, world_size, num_workers=workers, position=position, **options
            )
            assert rest == whole[done:], f"{world_size} ranks, {workers} workers, resumed"


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("cost", [None, BatchCost("cost", 40)], ids=["rows", "cost"])
def test_a_staged_parser_gives_the_same_batches(
    parquet: Callable[..., str], workers: int, cost: BatchCost | None
) -> None:
    options = {"batch_size": 7, "shuffle": True, "shuffle_window": 3, "batch_cost": cost}
    reader = ParquetDataset(parquet())
    want = list(BatchLoader(reader, parse=parse, **options).epoch(None, 0))  # type: ignore[arg-type]
    finished: list[int] = []
    staged = Staged(parse, lambda batch: finished.append(batch.num_rows) or batch)
    loader = BatchLoader(reader, parse=staged, num_workers=workers, **options)  # type: ignore[arg-type]
    got = list(loader.epoch(None, 0))
    assert ids(got) == ids(want)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.labels["items"].values, b.labels["items"].values)  # type: ignore[union-attr]
        assert a.labels["items"].max_len == b.labels["items"].max_len  # type: ignore[union-attr]
        assert a.position == b.position
        assert a.source.row.tolist() == b.source.row.tolist()  # type: ignore[union-attr]
    assert workers or len(finished) == len(want)


def test_rows_at_once_follow_their_size(parquet: Callable[..., str]) -> None:
    reader = ParquetDataset(parquet())
    assert 30 < reader.row_bytes < 60  # id, cost: 8 each; two items of 8; a word, counted as 16
    assert rows_at_once(reader) == 10_000
    reader.row_bytes = 1 << 20
    assert rows_at_once(reader) == 24
    reader.row_bytes = 1 << 40
    assert rows_at_once(reader) == 1


def test_a_window_that_needs_much_memory_is_told(
    parquet: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    reader = ParquetDataset(parquet())
    loader = BatchLoader(reader, parse=parse, batch_size=50, shuffle=True, shuffle_window=3)
    with caplog.at_level("WARNING", logger="tzgen"):
        list(loader.epoch(None, 0))
        assert not caplog.records
        reader.row_bytes = 1 << 28
        list(loader.epoch(None, 0))
    assert "a window of 3 row group(s) takes about 12 GiB" in caplog.text


def test_text_rows_load_as_parquet_rows_do(tmp_path: Path) -> None:
    whole = table(0, 90).drop_columns(["items"])
    for k in range(3):
        pacsv.write_csv(whole.slice(30 * k, 30), tmp_path / f"{k}.csv")
        pq.write_table(whole.slice(30 * k, 30), tmp_path / f"{k}.parquet")

    def id_and_word(rows: pa.RecordBatch, source: Source) -> Batch:
        ids = torch.tensor(rows.column("id").to_pylist())
        return Batch(rows.num_rows, labels={"id": ids}, source=source, passthrough=rows)

    options = {"parse": id_and_word, "batch_size": 8, "shuffle_window": 2, "seed": 1}
    text = CsvDataset(str(tmp_path), with_header=True)
    rows = ParquetDataset(str(tmp_path))
    for shuffle in (False, True):
        one = list(BatchLoader(text, shuffle=shuffle, **options).epoch(None, 0))  # type: ignore[arg-type]
        two = list(BatchLoader(rows, shuffle=shuffle, **options).epoch(None, 0))  # type: ignore[arg-type]
        assert sorted(chain(*ids(one))) == sorted(chain(*ids(two))) == list(range(90))
        if not shuffle:  # shuffled, their orders differ: the fingerprint of the data decides
            assert ids(one) == ids(two)
            assert all(a.passthrough.equals(b.passthrough) for a, b in zip(one, two, strict=True))


def test_each_batch_carries_the_position_after_it(parquet: Callable[..., str]) -> None:
    loader = BatchLoader(ParquetDataset(parquet()), parse=parse, batch_size=50, shuffle=True)
    batches = list(loader.epoch(None, 4))
    assert [batch.position.next_row for batch in batches] == [50, 100, 150, 200, 201]
    assert {batch.position.epoch for batch in batches} == {4}
    for k, batch in enumerate(batches):
        assert ids(list(loader.epoch(batch.position, 4))) == ids(batches[k + 1 :])


def test_epochs_and_seeds_differ_and_repeat(parquet: Callable[..., str]) -> None:
    path = parquet()
    first = global_batches(path, 1, shuffle=True, epoch=0)
    assert global_batches(path, 1, shuffle=True, epoch=0) == first
    assert global_batches(path, 1, shuffle=True, epoch=1) != first
    assert global_batches(path, 1, epoch=1) == global_batches(path, 1, epoch=0)


def test_a_last_short_batch_is_split_evenly_and_ranks_stay_in_step(
    parquet: Callable[..., str],
) -> None:
    path = parquet((10, 11))
    sizes = []
    for rank in range(4):
        loader = BatchLoader(
            ParquetDataset(path), parse=parse, batch_size=5, rank=rank, world_size=4
        )
        sizes.append([batch.num_rows for batch in loader.epoch(None, 0)])
    assert sizes == [[5, 0], [5, 0], [5, 0], [5, 1]]


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, [80, 80, 41]),
        ({"drop_remainder": True}, [80, 80]),
        ({"min_batch_size": 41}, [80, 80, 41]),
        ({"min_batch_size": 42}, [80, 80]),
        ({"batch_cost": BatchCost("cost", 320), "drop_remainder": True}, [80, 80]),
    ],
)
def test_the_remainder(parquet: Callable[..., str], options: dict, want: list[int]) -> None:
    loader = BatchLoader(ParquetDataset(parquet()), parse=parse, batch_size=80, **options)
    sizes = [batch.num_rows for batch in loader.epoch(None, 0)]
    assert len(sizes) == len(want) == loader.num_batches(0)
    if "batch_cost" not in options:
        assert sizes == want


def test_nothing_left_after_dropping_is_refused(parquet: Callable[..., str]) -> None:
    loader = BatchLoader(
        ParquetDataset(parquet()), parse=parse, batch_size=500, drop_remainder=True
    )
    with pytest.raises(UserError, match="201 rows do not fill one batch"):
        loader.num_batches(0)


def test_batches_by_cost_keep_the_budget(parquet: Callable[..., str]) -> None:
    loader = BatchLoader(
        ParquetDataset(parquet()),
        parse=parse,
        batch_size=1,
        shuffle=True,
        batch_cost=BatchCost("cost", 30),
    )
    costs = [[i % 7 + 1 for i in batch] for batch in ids(list(loader.epoch(None, 0)))]
    assert all(sum(batch) <= 30 for batch in costs)
    assert all(sum(a) + b[0] > 22 for a, b in pairwise(costs))


def test_source_names_each_row(parquet: Callable[..., str]) -> None:
    loader = BatchLoader(
        ParquetDataset(parquet()), parse=parse, batch_size=40, shuffle=True, num_workers=2
    )
    starts = {"f0.parquet": 0, "f1.parquet": 100, "f2.parquet": 137}
    for batch in loader.epoch(None, 0):
        source = batch.source
        assert source is not None
        names = [source.files[i] for i in source.file_index.tolist()]
        found = [starts[n] + r for n, r in zip(names, source.row.tolist(), strict=True)]
        assert found == batch.labels["id"].tolist()
        assert batch.passthrough.column("word").to_pylist() == [f"w{i % 3}" for i in found]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 9}, "seed"),
        ({"epoch": 2}, "epoch"),
        ({"fingerprint": "other"}, "fingerprint"),
    ],
)
def test_a_position_of_something_else_is_refused(
    parquet: Callable[..., str], change: dict, name: str
) -> None:
    loader = BatchLoader(ParquetDataset(parquet()), parse=parse, batch_size=8, seed=3, shuffle=True)
    state = {"seed": 3, "epoch": 0, "next_row": 8, "fingerprint": loader.fingerprint} | change
    with pytest.raises(UserError, match=f"cannot resume: {name} of the saved reader state"):
        loader.epoch(Position(**state), 0)


def test_changed_shuffle_settings_are_refused(parquet: Callable[..., str]) -> None:
    reader = ParquetDataset(parquet())
    prints = {
        BatchLoader(
            reader, parse=parse, batch_size=8, shuffle=shuffle, shuffle_window=window
        ).fingerprint
        for shuffle, window in [(False, 8), (True, 8), (True, 4)]
    }
    assert len(prints) == 3


def test_an_epoch_that_is_done_yields_nothing(parquet: Callable[..., str]) -> None:
    loader = BatchLoader(ParquetDataset(parquet()), parse=parse, batch_size=8, num_workers=1)
    assert list(loader.epoch(Position(0, 0, 201, loader.fingerprint), 0)) == []


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"shuffle_window": 0}, {"num_workers": -1}])
def test_senseless_sizes_are_refused(parquet: Callable[..., str], options: dict) -> None:
    with pytest.raises(UserError, match="data_config"):
        BatchLoader(ParquetDataset(parquet()), parse=parse, **{"batch_size": 1, **options})
