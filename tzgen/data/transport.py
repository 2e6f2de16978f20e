# SPDX-License-Identifier: Apache-2.0
"""Objects with tensors and record batches from one process to another over a socket pair.

A message is a pickle without the bulk, then the bulk: every tensor's bytes, 64-byte aligned. The
receiver reads the bulk straight into one (pinned) allocation, of which the tensors are views: no
/dev/shm to fill, no descriptor per tensor, no extra copy into pinned memory.
"""

from __future__ import annotations

import io
import pickle
import socket
import struct
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

ALIGN = 64
PIECES_PER_CALL = 256
HEADER = struct.Struct("<QQ")


class _Pieces(io.RawIOBase):
    """Keeps what is written, without copying it: Arrow hands over its buffers themselves."""

    def __init__(self) -> None:
        self.pieces: list[memoryview] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        piece = memoryview(data).cast("B")
        self.pieces.append(piece)
        return len(piece)


class _Pickler(pickle.Pickler):
    """Sets the bytes of tensors and record batches aside; an object met again is a reference."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.bulk: list[memoryview | bytes] = []
        self.size = 0
        self.dispatch_table = {Tensor: self._tensor, pa.RecordBatch: self._rows}

    def _tensor(self, tensor: Tensor) -> tuple[Any, ...]:
        flat = tensor.detach().contiguous().reshape(-1)
        # A lone element may keep a stride other than 1, which a view as bytes refuses.
        flat = flat.as_strided((flat.numel(),), (1,)).view(torch.uint8)
        place = self._set_aside([flat.numpy().data])
        return tensor_at, (*place, tensor.dtype, tuple(tensor.shape))

    def _rows(self, rows: pa.RecordBatch) -> tuple[Any, ...]:
        sink = _Pieces()
        with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), rows.schema) as stream:
            stream.write_batch(rows)
        return rows_at, self._set_aside(sink.pieces)

    def _set_aside(self, pieces: list[memoryview]) -> tuple[int, int]:
        start, size = self.size, sum(len(piece) for piece in pieces)
        self.bulk += [*pieces, bytes(-size % ALIGN)]
        self.size += size + -size % ALIGN
        return start, size


def tensor_at(start: int, size: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    raise TypeError("only transport.receive knows where the bytes are")


def rows_at(start: int, size: int) -> pa.RecordBatch:
    raise TypeError("only transport.receive knows where the bytes are")


class _Unpickler(pickle.Unpickler):
    """Puts views of `bulk` in the place of `tensor_at` and `rows_at`."""

    def __init__(self, file: io.BytesIO, bulk: Tensor) -> None:
        super().__init__(file)
        self._bulk = bulk

    def find_class(self, module: str, name: str) -> Any:
        if module == __name__:
            return {"tensor_at": self._tensor, "rows_at": self._rows}[name]
        return super().find_class(module, name)

    def _tensor(self, start: int, size: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        return self._bulk[start : start + size].view(dtype).view(shape)

    def _rows(self, start: int, size: int) -> pa.RecordBatch:
        piece = self._bulk[start : start + size]
        with pa.ipc.open_stream(pa.py_buffer(piece.numpy())) as stream:
            return stream.read_next_batch()


def send(channel: socket.socket, message: object) -> None:
    """Write one message; blocks until the other side has read nearly all of it.

    Raises BrokenPipeError or ConnectionResetError when the other side is gone.
    """
    head = io.BytesIO()
    pickler = _Pickler(head)
    pickler.dump(message)
    pieces = [HEADER.pack(head.tell(), pickler.size), head.getvalue(), *pickler.bulk]
    _send_all(channel, [memoryview(piece) for piece in pieces if len(piece)])


def _send_all(channel: socket.socket, pieces: list[memoryview]) -> None:
    """Scatter-gather: one system call for many small tensors."""
    first = 0
    while first < len(pieces):
        sent = channel.sendmsg(pieces[first : first + PIECES_PER_CALL])
        while first < len(pieces) and sent >= len(pieces[first]):
            sent -= len(pieces[first])
            first += 1
        if sent:
            pieces[first] = pieces[first][sent:]


def receive(channel: socket.socket, *, pin: bool = False) -> Any:
    """Read one message. Raises EOFError when the other side has closed or died."""
    head_size, bulk_size = HEADER.unpack(_exactly(channel, bytearray(HEADER.size)))
    head = _exactly(channel, bytearray(head_size))
    bulk = torch.empty(bulk_size, dtype=torch.uint8, pin_memory=pin)
    if bulk_size:
        _exactly(channel, bulk.numpy().data)
    return _Unpickler(io.BytesIO(head), bulk).load()


def _exactly(channel: socket.socket, space: bytearray | memoryview) -> bytearray | memoryview:
    view = memoryview(space)
    while len(view):
        count = channel.recv_into(view)
        if count == 0:
            raise EOFError("the other side has closed")
        view = view[count:]
    return space
