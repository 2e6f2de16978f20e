# SPDX-License-Identifier: Apache-2.0
"""Give up tensors between forward and backward, and compute them again when backward asks.

    u, v, q, k = project(x)
    with recomputed(lambda: project(x), (u, v, q, k), (x,)):
        out = combine(x, u, attend(q, k, v))

What autograd keeps inside the block is looked at: a tensor that lies in the memory of u, v, q or k
is replaced by a note of which one and where; the rest is kept as always. The first note that
backward reads runs `compute` once for all. No op has to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class _View:
    """A tensor that is to be taken out of the `index`-th recomputed one."""

    index: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class _Source:
    """The tensors, computed when first asked for; freed with the last note that refers to them."""

    def __init__(self, compute: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor]) -> None:
        self._compute, self._inputs = compute, [(x, x._version) for x in inputs]
        self._tensors: Sequence[Tensor] | None = None

    def view(self, view: _View) -> Tensor:
        if self._tensors is None:
            for x, version in self._inputs:
                if x._version != version:
                    raise RuntimeError(
                        "a tensor that is needed to recompute u, v, q, k was changed in place "
                        "after forward; set recompute_uvqk: false or do not change it"
                    )
            with torch.no_grad():
                self._tensors = self._compute()
        return self._tensors[view.index].as_strided(view.size, view.stride, view.offset)


@contextmanager
def recomputed(
    compute: Callable[[], Sequence[Tensor]], tensors: Sequence[Tensor], inputs: Sequence[Tensor]
) -> Iterator[None]:
    """Inside, autograd keeps no memory of `tensors`; `compute()` must give them again, with the
    same strides and offsets, from `inputs`."""
    source = _Source(compute, inputs)
    places = {x.untyped_storage().data_ptr(): index for index, x in enumerate(tensors)}

    def pack(x: Tensor) -> Tensor | tuple[_Source, _View]:
        index = places.get(x.untyped_storage().data_ptr()) if x.numel() else None
        if index is None:
            return x
        return source, _View(index, x.size(), x.stride(), int(x.storage_offset()))

    def unpack(kept: Tensor | tuple[_Source, _View]) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        origin, view = kept
        return origin.view(view)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
