# SPDX-License-Identifier: Apache-2.0
"""The same rows in the same batches, whoever loads them and wherever a run stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from sample_rows import parse

from tzgen.data.batch import Batch, Position, Source
from tzgen.data.loader import BatchLoader
from tzgen.data.plan import BatchCost
from tzgen.data.readers import ParquetDataset
from tzgen.errors import DataError, UserError

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
        next(loader.epoch(Position(**state), 0))


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


# What goes wrong in workers.


def refuse_row_150(rows: pa.RecordBatch, source: Source) -> Batch:
    batch = parse(rows, source)
    if 150 in batch.labels["id"]:
        raise DataError(file="f2", row=150, found="150", expected="not 150", remedy="None.")
    return batch


def break_down(rows: pa.RecordBatch, source: Source) -> Batch:
    raise KeyError("a bug in the parser")


def die(rows: pa.RecordBatch, source: Source) -> Batch:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def gone(seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_data_error_arrives_as_itself_after_the_good_batches(
    parquet: Callable[..., str], workers: int
) -> None:
    loader = BatchLoader(
        ParquetDataset(parquet()), parse=refuse_row_150, batch_size=10, num_workers=workers
    )
    got = []
    with pytest.raises(DataError) as error:
        for batch in loader.epoch(None, 0):
            got += batch.labels["id"].tolist()
    assert got == list(range(150))
    assert (error.value.file, error.value.row) == ("f2", 150)
    assert gone()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_corrupt_row_group_is_named_from_any_worker(
    parquet: Callable[..., str], workers: int
) -> None:
    path = Path(parquet()) / "f1.parquet"
    reader = ParquetDataset(str(path.parent))
    data = bytearray(path.read_bytes())
    data[40:400] = b"\xff" * 360
    path.write_bytes(data)
    loader = BatchLoader(reader, parse=parse, batch_size=10, num_workers=workers)
    with pytest.raises(DataError) as error:
        list(loader.epoch(None, 0))
    assert error.value.file == str(path)
    assert error.value.row_group == 0
    assert gone()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bug_in_the_parser_ends_the_epoch(
    parquet: Callable[..., str], workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    loader = BatchLoader(
        ParquetDataset(parquet()), parse=break_down, batch_size=10, num_workers=workers
    )
    with pytest.raises(RuntimeError, match=r"tzgen-.* failed; its traceback is printed above"):
        list(loader.epoch(None, 0))
    assert "a bug in the parser" in capfd.readouterr().err
    assert gone()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_reported(parquet: Callable[..., str], workers: int) -> None:
    loader = BatchLoader(ParquetDataset(parquet()), parse=die, batch_size=10, num_workers=workers)
    with pytest.raises(UserError, match="was killed by SIGKILL"):
        list(loader.epoch(None, 0))
    assert gone()


@pytest.mark.parametrize("workers", [1, 3])
def test_stopping_early_leaves_no_process(parquet: Callable[..., str], workers: int) -> None:
    loader = BatchLoader(
        ParquetDataset(parquet((20000,), 1000)), parse=parse, batch_size=2, num_workers=workers
    )
    batches = loader.epoch(None, 0)
    next(batches)
    assert multiprocessing.active_children()
    batches.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()
    dropped = loader.epoch(None, 0)
    next(dropped)
    del dropped
    assert gone()


def test_two_epochs_at_once(parquet: Callable[..., str]) -> None:
    """Training and evaluation loaders alive together do not hold each other's channels open."""
    loader = BatchLoader(ParquetDataset(parquet()), parse=parse, batch_size=10, num_workers=2)
    one, other = loader.epoch(None, 0), loader.epoch(None, 1)
    pairs = list(zip(one, other, strict=True))
    assert len(pairs) == 21
    assert gone()


def test_spawned_workers_give_the_same(parquet: Callable[..., str]) -> None:
    """Readers of remote storage are not fork-safe: workers get everything pickled."""
    reader = ParquetDataset(parquet((30,)))
    reader.fork_safe = False
    want = list(BatchLoader(reader, parse=parse, batch_size=10, shuffle=True).epoch(None, 0))
    loader = BatchLoader(reader, parse=parse, batch_size=10, shuffle=True, num_workers=2)
    assert ids(list(loader.epoch(None, 0))) == ids(want)


TRAINING = """
    import sys, time
    sys.path[:0] = [{tests!r}, {root!r}]
    from sample_rows import parse
    from tzgen.data.loader import BatchLoader
    from tzgen.data.readers import ParquetDataset
    loader = BatchLoader(ParquetDataset({path!r}), parse=parse, batch_size=2, num_workers=2)
    batches = loader.epoch(None, 0)
    next(batches)
    import multiprocessing
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    try:
        time.sleep(60)
    finally:
        print("interrupted", flush=True)
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_the_training_process(
    parquet: Callable[..., str], how: signal.Signals
) -> None:
    here = Path(__file__).parent
    code = textwrap.dedent(TRAINING).format(
        tests=str(here), root=str(here.parent.parent), path=parquet((20000,), 1000)
    )
    training = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert training.stdout is not None
    workers = [int(pid) for pid in training.stdout.readline().split()]
    assert len(workers) == 3
    assert all(alive(pid) for pid in workers)
    if how is signal.SIGINT:
        os.killpg(training.pid, how)  # as Ctrl-C in a terminal: everyone gets it
    else:
        training.send_signal(how)
    out, err = training.communicate(timeout=20)
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in workers)
    if how is signal.SIGINT:
        assert "interrupted" in out
        assert err.count("KeyboardInterrupt") == 1, "workers leave Ctrl-C to the training process"


def test_a_batch_is_whole_after_the_loader_is_gone(parquet: Callable[..., str]) -> None:
    loader = BatchLoader(ParquetDataset(parquet()), parse=parse, batch_size=200, num_workers=1)
    batch = next(iter(loader.epoch(None, 0)))
    del loader
    assert torch.equal(batch.labels["id"], torch.arange(200))
