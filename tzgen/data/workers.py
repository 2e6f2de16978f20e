# SPDX-License-Identifier: Apache-2.0
"""Loader processes: one reads, several parse, and batches arrive in order.

One worker reads and parses. With more, a further process reads and arranges the rows, so that each
row group is decoded once however many workers there are, and hands item i of RankRows to parser
i mod W. Every channel is a socket pair: a process whose reader is gone ends by itself, so nothing
survives the training process, not even when that is killed.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

import pyarrow as pa
import torch

from tzgen.data.batch import Batch
from tzgen.data.gather import RankRows
from tzgen.data.readers.base import Reader
from tzgen.data.staged import Parse, parse_parts
from tzgen.data.transport import receive, send
from tzgen.errors import UserError

WAITING_PER_WORKER = 2  # parsed batches held ready for the consumer
EXIT_SECONDS = 5.0


def batches_from_workers(
    rows: RankRows,
    reader: Reader,
    parse: Parse,
    *,
    num_workers: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    """Parsed batches in order. Closing the iterator, or dropping it, ends the processes."""
    # Client threads of remote storage do not survive a fork; forking is faster where it is safe.
    method = "fork" if reader.fork_safe and _can_fork() else "spawn"
    pool = _Pool(multiprocessing.get_context(method), rows, reader, parse, num_workers)
    ready: queue.Queue[Batch | UserError | EOFError] = queue.Queue(WAITING_PER_WORKER * num_workers)
    stop = threading.Event()
    thread = threading.Thread(
        target=_collect,
        args=(pool.outputs, ready, stop, rows.batches_per_item, pin_memory),
        name="tzgen-loader",
        daemon=True,
    )
    thread.start()
    try:
        for _ in range(sum(rows.batches_per_item)):
            item = ready.get()
            if isinstance(item, UserError):
                raise item
            if isinstance(item, EOFError):
                raise pool.death()
            yield item
    finally:
        stop.set()
        pool.close()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                ready.get(timeout=0.05)
        thread.join()


def _can_fork() -> bool:
    return "fork" in multiprocessing.get_all_start_methods()


def _collect(
    outputs: list[socket.socket],
    ready: queue.Queue[Batch | UserError | EOFError],
    stop: threading.Event,
    batches_per_item: list[int],
    pin_memory: bool,
) -> None:
    """Thread: the batches of item i from parser i mod W, straight into (pinned) memory."""
    left = sum(batches_per_item)
    try:
        for i, count in enumerate(batches_per_item):
            for _ in range(count):
                item = receive(outputs[i % len(outputs)], pin=pin_memory)
                if stop.is_set():
                    return
                ready.put(item)
                if not isinstance(item, Batch):
                    return
                left -= 1
    except (EOFError, OSError):
        return
    finally:
        if left:  # also when a message cannot be unpickled: nobody waits forever
            ready.put(EOFError())


class _Pool:
    """The processes of one epoch and the sockets that their batches arrive on."""

    def __init__(
        self, context: BaseContext, rows: RankRows, reader: Reader, parse: Parse, num_workers: int
    ) -> None:
        self.processes: list[BaseProcess] = []
        self.outputs: list[socket.socket] = []
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            if num_workers == 1:
                mine, theirs = self._channel()
                self._start(context, "load", _read_and_parse, (theirs, rows, parse), [mine])
                theirs.close()
            else:
                self._start_pipeline(context, rows, reader, parse, num_workers)
            undo.pop_all()

    def _channel(self) -> tuple[socket.socket, socket.socket]:
        mine, theirs = socket.socketpair()
        self.outputs.append(mine)
        return mine, theirs

    def _start_pipeline(
        self, context: BaseContext, rows: RankRows, reader: Reader, parse: Parse, num_parsers: int
    ) -> None:
        """One reader, then `num_parsers` that it feeds."""
        inputs = [socket.socketpair() for _ in range(num_parsers)]
        feeds, eaters = [pair[0] for pair in inputs], [pair[1] for pair in inputs]
        self._start(context, "read", _read_rows, (feeds, rows, reader, num_parsers), eaters)
        for feed in feeds:
            feed.close()
        for w, eater in enumerate(eaters):
            _, theirs = self._channel()
            foreign = [*self.outputs, *eaters[w + 1 :]]
            self._start(context, f"parse-{w}", _parse_rows, (eater, theirs, parse), foreign)
            theirs.close()
            eater.close()

    def _start(
        self,
        context: BaseContext,
        name: str,
        work: Callable[..., None],
        args: tuple[object, ...],
        foreign: list[socket.socket],
    ) -> None:
        # A forked child holds copies of all channels; a spawned one only of those it is given.
        forked = context.get_start_method() == "fork"
        process = context.Process(  # type: ignore[attr-defined]
            target=_child,
            args=(work, args, foreign if forked else []),
            name=f"tzgen-{name}",
            daemon=True,
        )
        process.start()
        self.processes.append(process)

    def death(self) -> Exception:
        """What to raise when a channel closed early: which process died of what."""
        deadline = time.monotonic() + EXIT_SECONDS
        failed: list[BaseProcess] = []
        while not failed and time.monotonic() < deadline:
            time.sleep(0.01)
            failed = [process for process in self.processes if process.exitcode]
        if failed and (code := failed[0].exitcode or 0) < 0:
            return UserError(
                f"{failed[0].name} was killed by {signal.Signals(-code).name}; SIGKILL mostly "
                "means that memory ran out. Lower data_config.num_workers or shuffle_window."
            )
        who = failed[0].name if failed else "the loader"
        return RuntimeError(
            f"{who} failed; its traceback is printed above. data_config.num_workers 0 runs it in "
            "this process."
        )

    def close(self) -> None:
        for channel in self.outputs:
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)
            channel.close()
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join(EXIT_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()


def _child(
    work: Callable[..., None], args: tuple[object, ...], foreign: list[socket.socket]
) -> None:
    """A worker's first steps: Ctrl-C is the training process's, one thread, no stray channels.

    Memory is the C library's: Arrow's own pool gives freed columns back to the kernel at once, and
    the next window pays for clearing them again. Measured: a fifth of the processor time.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_memory_pool(pa.system_memory_pool())
    gc.freeze()  # what was imported stays: collecting it again and again is a tenth of the work
    for channel in foreign:
        channel.close()
    # The consumer went away: a normal end.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        work(*args)


def _read_and_parse(output: socket.socket, rows: RankRows, parse: Parse) -> None:
    try:
        for some in rows:
            for batch in parse_parts(parse, some.rows, some.source, some.sizes):
                send(output, batch)
    except UserError as error:
        send(output, error)


def _read_rows(
    parsers: list[socket.socket], rows: RankRows, reader: Reader, num_threads: int
) -> None:
    """Decode with as many threads as there are parsers: their work is about the same."""
    pa.set_cpu_count(num_threads)
    reader.use_threads = True
    turn = 0
    try:
        for some in rows:
            send(parsers[turn], some)
            turn = (turn + 1) % len(parsers)
    except UserError as error:
        send(parsers[turn], error)


def _parse_rows(rows: socket.socket, output: socket.socket, parse: Parse) -> None:
    while True:
        try:
            some = receive(rows)
        except EOFError:  # the reader has no more, or is gone: whoever counts batches knows which
            return
        if isinstance(some, UserError):
            send(output, some)
            return
        try:
            for batch in parse_parts(parse, some.rows, some.source, some.sizes):
                send(output, batch)
        except UserError as error:
            send(output, error)
            return
