# SPDX-License-Identifier: Apache-2.0
"""Loader processes: errors arrive, nothing hangs, and no process is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from sample_rows import parse

from tzgen.data.batch import Batch, Source
from tzgen.data.loader import BatchLoader
from tzgen.data.readers import ParquetDataset
from tzgen.errors import DataError, UserError


def ids(batches: list[Batch]) -> list[list[int]]:
    return [batch.labels["id"].tolist() for batch in batches]  # type: ignore[union-attr]


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
    loader = BatchLoader(reader, parse=parse, batch_size=10, shuffle=True, num_workers=1)
    assert ids(list(loader.epoch(None, 0))) == ids(want)


TRAINING = """
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    sys.path[:0] = [{tests!r}, {root!r}]
    from sample_rows import parse
    from tzgen.data.loader import BatchLoader
    from tzgen.data.readers import ParquetDataset
    loader = BatchLoader(ParquetDataset({path!r}), parse=parse, batch_size=2, num_workers=2)
    batches = loader.epoch(None, 0)
    next(batches)
    import multiprocessing
    try:
        print(*[p.pid for p in multiprocessing.active_children()], flush=True)
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
