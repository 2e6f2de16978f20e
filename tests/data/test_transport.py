# SPDX-License-Identifier: Apache-2.0
"""What is sent is what arrives: dtypes, shapes, sharing, record batches, and a closed channel."""

from __future__ import annotations

import socket
import threading

import pyarrow as pa
import pytest
import torch

from tzgen.data.transport import receive, send
from tzgen.errors import DataError


def through(message: object) -> object:
    """One message across a socket pair, larger than its buffer if need be."""
    one, other = socket.socketpair()
    with one, other:
        thread = threading.Thread(target=send, args=(one, message))
        thread.start()
        arrived = receive(other)
        thread.join()
        return arrived


TENSORS = [
    torch.arange(7),
    torch.tensor(3.5),
    torch.zeros(0, 4),
    torch.randn(3, 5).T,
    torch.randn(1_000_003),
    torch.tensor([True, False]),
    torch.randn(5).bfloat16(),
    torch.arange(4).as_strided((1,), (0,), 2),
    torch.arange(10, dtype=torch.int32)[3:7],
]


@pytest.mark.parametrize("tensor", TENSORS, ids=lambda t: f"{t.dtype}{tuple(t.shape)}")
def test_tensors(tensor: torch.Tensor) -> None:
    arrived = through({"x": tensor, "name": "x"})
    assert arrived["name"] == "x"
    assert arrived["x"].dtype == tensor.dtype
    assert torch.equal(arrived["x"], tensor)


def test_a_tensor_that_two_fields_share_travels_once() -> None:
    lengths = torch.arange(100)
    a, b = through([lengths, lengths])
    assert a.data_ptr() == b.data_ptr()
    assert torch.equal(a, lengths)


def test_record_batches_without_the_rest_of_what_they_are_slices_of() -> None:
    rows = pa.RecordBatch.from_pydict(
        {
            "l": [[1], None, [2, 3], []],
            "d": pa.array(["a", "b", "a", None]).dictionary_encode(),
            "m": pa.array([[("k", 1)], None, [], []], pa.map_(pa.string(), pa.int64())),
        }
    ).slice(1, 2)
    arrived = through((rows, torch.ones(3)))
    assert arrived[0].equals(rows)
    assert torch.equal(arrived[1], torch.ones(3))


def test_errors_keep_their_fields() -> None:
    error = through(
        DataError(file="f", row_group=3, column="c", found="x", expected="y", remedy="z")
    )
    assert isinstance(error, DataError)
    assert (error.file, error.row_group, error.column) == ("f", 3, "c")


def test_a_closed_channel_is_an_end() -> None:
    one, other = socket.socketpair()
    one.close()
    with other, pytest.raises(EOFError):
        receive(other)


def test_many_small_tensors_need_several_calls() -> None:
    tensors = [torch.full((i % 9,), i) for i in range(1000)]
    arrived = through(tensors)
    assert all(torch.equal(a, b) for a, b in zip(arrived, tensors, strict=True))
