# SPDX-License-Identifier: Apache-2.0
"""Layers of new tokens in one call against reference layers over the joined rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from cached_cases import PAGE, SPECS, close, contiguous, offsets_of, pages_of
from torch import Tensor

from tzgen.ops import native, stu_cached
from tzgen.ops.hstu_attention import MaskSpec, hstu_attention_reference
from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention_cached import CachedKV
from tzgen.ops.stu_cached import LayerShape, LayerWeights, stu_layers_cached, usable
from tzgen.ops.stu_linear import stu_input_reference, stu_output_reference

EPS = 1e-5
NATIVE = pytest.mark.skipif(not native.available(), reason="needs a C++ compiler")
DTYPES = ((torch.float64, 1e-10), (torch.float32, 1e-5))


class Joined:
    """Whole rows through reference layers, with what every layer has of each token."""

    def __init__(
        self,
        spec: MaskSpec,
        *,
        lengths: Sequence[int],
        targets: Sequence[int],
        biased: bool = False,
        dtype: torch.dtype = torch.float64,
        dims: tuple[int, int, int, int] = (7, 2, 6, 10),
        forms: tuple[str, str, bool] = ("uvqk", "CONCAT_UOX", False),
        layers: int = 2,
        seed: int = 0,
    ) -> None:
        make = torch.Generator().manual_seed(seed)

        def normal(*shape: int, scale: float = 1.0, middle: float = 0.0) -> Tensor:
            made = torch.randn(shape, generator=make, dtype=torch.float64) * scale + middle
            return made.to(dtype)

        dim, heads, narrow, wide = dims
        activated, form, by_head = forms
        self.dtype = dtype
        self.lengths, self.targets, self.spec = list(lengths), list(targets), spec
        self.shape = LayerShape(heads, narrow, wide, activated, form, by_head, EPS)
        width, rows = heads * wide, 2 * heads * (narrow + wide)
        normed, parts = heads if by_head else width, 3 if form == "CONCAT_UOX" else 1
        self.layers = [
            LayerWeights(
                (
                    normal(dim, scale=0.2, middle=1.0),
                    normal(dim, scale=0.2),
                    normal(rows, dim, scale=1.5 / dim**0.5),
                    normal(rows, scale=0.2),
                    normal(normed, scale=0.2, middle=1.0),
                    normal(normed, scale=0.2),
                    normal(dim, parts * width, scale=1 / (parts * width) ** 0.5),
                ),
                position_bias=normal(heads, 11) if biased else None,
                time_bias=normal(1, 20) if biased else None,
            )
            for _ in range(layers)
        ]
        total = sum(lengths)
        self.x = normal(total, dim)
        self.times = torch.randint(0, 100_000, (total,), generator=make)
        self.reads_time = biased or spec.timestamp_mask
        self.constants = {"alpha": 1.6 / narrow**0.5, "divisor": 12.0}
        self.entered: list[Tensor] = []
        self.k: list[Tensor] = []
        self.v: list[Tensor] = []
        x = self.x
        for weights in self.layers:
            x = self._layer(x, weights)
        self.out = x

    def _layer(self, x: Tensor, weights: LayerWeights) -> Tensor:
        shape, parameters = self.shape, weights.linear
        heads = (shape.num_heads, -1)
        widths = [shape.num_heads * shape.hidden_dim] * 2
        widths += [shape.num_heads * shape.attention_dim] * 2
        u, v, q, k = stu_input_reference(
            x, *parameters[:4], widths=widths, activated=shape.activated, eps=EPS
        )
        q, k, v = (part.unflatten(1, heads) for part in (q, k, v))
        self.entered.append(x)
        self.k.append(k)
        self.v.append(v)
        attended = hstu_attention_reference(
            q,
            k,
            v,
            offsets_of(self.lengths),
            mask=self.spec,
            num_targets=torch.tensor(self.targets, dtype=torch.int64),
            timestamps=self.times if self.reads_time else None,
            position_bias=weights.position_bias,
            time_bias=weights.time_bias,
            **self.constants,
        )
        return stu_output_reference(
            attended.flatten(1),
            u,
            x,
            *parameters[4:],
            output_form=shape.output_form,
            activate_u=False,
            group_norm_heads=shape.num_heads if shape.by_head else None,
            eps=EPS,
        )

    def cut(self, cached: Sequence[int], *, paged: bool = False) -> Cut:
        """The first `cached` tokens of each row in caches, the others new."""
        starts = [sum(self.lengths[:row]) for row in range(len(self.lengths))]
        pieces = list(zip(starts, cached, self.lengths, strict=True))
        kept = torch.cat([torch.arange(s, s + c) for s, c, _ in pieces])
        fresh = torch.cat([torch.arange(s + c, s + n) for s, c, n in pieces])
        times = self.times[kept] if self.reads_time else None
        caches = [
            contiguous((k[kept], v[kept], times), cached)
            for k, v in zip(self.k, self.v, strict=True)
        ]
        if paged:
            caches = [pages_of(cache) for cache in caches]
        first = caches[0]
        shared = {"lengths": first.lengths, "table": first.table, "timestamps": first.timestamps}
        return Cut(
            self, [replace(c, **shared) for c in caches], fresh, [n - c for _, c, n in pieces]
        )


class Cut:
    """The arguments of `stu_layers_cached`, and which tokens of the joined rows they are."""

    def __init__(
        self, joined: Joined, caches: list[CachedKV], fresh: Tensor, counts: list[int]
    ) -> None:
        self.joined, self.caches, self.fresh = joined, caches, fresh
        self.offsets = offsets_of(counts)
        targets = [min(count, new) for count, new in zip(joined.targets, counts, strict=True)]
        self.call = Call(
            joined.spec,
            max(counts, default=0),
            joined.constants["alpha"],
            joined.constants["divisor"],
            0.301,
            torch.tensor(targets, dtype=torch.int64),
            joined.times[fresh] if joined.reads_time else None,
            None,
            None,
        )

    def run(self, **changes: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        given: dict[str, Any] = {
            "x": self.joined.x[self.fresh],
            "layers": self.joined.layers,
            "shape": self.joined.shape,
            "offsets": self.offsets,
            "caches": self.caches,
            "call": self.call,
            "keep": True,
        }
        return stu_layers_cached(**(given | changes))

    def check(self, tolerance: float) -> None:
        out, keys, values = self.run()
        close(out, self.joined.out[self.fresh], tolerance)
        for got, want in zip([*keys, *values], [*self.joined.k, *self.joined.v], strict=True):
            close(got, want[self.fresh], tolerance)


@NATIVE
@pytest.mark.parametrize("paged", [False, True], ids=["contiguous", "paged"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "rab"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_split_is_the_joined_row(spec: MaskSpec, biased: bool, paged: bool) -> None:
    """13 history tokens and 4 candidates, cut everywhere in the history; a second row beside it."""
    for dtype, tolerance in DTYPES:
        joined = Joined(spec, lengths=[17, 9], targets=[4, 2], biased=biased, dtype=dtype)
        for split in range(14):
            joined.cut([split, min(split, 7)], paged=paged).check(tolerance)


@NATIVE
@pytest.mark.parametrize("by_head", [False, True], ids=["norm", "norm by head"])
@pytest.mark.parametrize("form", ["CONCAT_UOX", "UX"])
@pytest.mark.parametrize("activated", ["u", "uvqk", "vq", "k", ""])
def test_forms(activated: str, form: str, by_head: bool) -> None:
    for dtype, tolerance in DTYPES:
        joined = Joined(
            MaskSpec(contextual_len=1),
            lengths=[12, 3],
            targets=[5, 1],
            dtype=dtype,
            forms=(activated, form, by_head),
        )
        joined.cut([6, 2]).check(tolerance)


SHAPES = {
    "ragged deltas": ([20, 9, 14, 6], [3, 0, 14, 1], [11, 2, 0, 5]),
    "nothing cached": ([7, 1, 12], [2, 0, 0], [0, 0, 0]),
    "nothing new": ([7, 1, 12], [0, 0, 0], [7, 1, 12]),
    "one row without new tokens": ([8, 5, 9], [2, 0, 3], [6, 5, 6]),
    "one token": ([2, 1, 1], [1, 1, 0], [1, 0, 0]),
    "a panel of tokens": ([70], [32], [38]),
    "one token more": ([70], [33], [37]),
    "panels and a page border": ([3 * PAGE + 150], [110], [3 * PAGE]),
    "many keys": ([700, 300], [20, 9], [650, 280]),
}


@NATIVE
@pytest.mark.parametrize("paged", [False, True], ids=["contiguous", "paged"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, paged: bool) -> None:
    lengths, targets, cached = SHAPES[shape]
    for dtype, tolerance in DTYPES:
        joined = Joined(MaskSpec(), lengths=lengths, targets=targets, biased=True, dtype=dtype)
        joined.cut(cached, paged=paged).check(tolerance)


@NATIVE
@pytest.mark.parametrize("dims", [(1, 1, 1, 1), (33, 3, 17, 5), (64, 4, 32, 16), (130, 1, 70, 65)])
@pytest.mark.parametrize("layers", [1, 3])
def test_widths(dims: tuple[int, int, int, int], layers: int) -> None:
    for dtype, tolerance in DTYPES:
        joined = Joined(
            MaskSpec(), lengths=[40], targets=[21], dims=dims, layers=layers, dtype=dtype
        )
        joined.cut([12]).check(tolerance)


@NATIVE
def test_what_is_not_wanted_is_left_out() -> None:
    cut = Joined(MaskSpec(), lengths=[20], targets=[0], layers=3).cut([11])
    out, keys, values = cut.run(keep=False)
    close(out, cut.joined.out[cut.fresh], 1e-10)
    assert (keys, values) == ([], [])
    entered, keys, values = cut.run(states=False)
    close(entered, cut.joined.entered[2][cut.fresh], 1e-10)
    for got, want in zip([*keys, *values], [*cut.joined.k, *cut.joined.v], strict=True):
        close(got, want[cut.fresh], 1e-10)
    one = Joined(MaskSpec(), lengths=[20], targets=[0], layers=1).cut([11])
    out, keys, _ = one.run(states=False)
    assert out.shape == (0, 7)
    close(keys[0], one.joined.k[0][one.fresh], 1e-10)


@NATIVE
def test_bits_depend_neither_on_threads_nor_on_company() -> None:
    together = Joined(
        MaskSpec(), lengths=[300, 90, 41], targets=[40, 20, 30], dims=(64, 4, 32, 32), biased=True
    )
    cut = together.cut([260, 50, 11], paged=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = cut.run()[0]
        torch.set_num_threads(4)
        for _ in range(5):
            assert torch.equal(cut.run()[0], want)
    finally:
        torch.set_num_threads(threads)
    first, last = int(cut.offsets[1]), int(cut.offsets[2])
    alone = cut.run(
        x=together.x[cut.fresh][first:last],
        offsets=torch.tensor([0, last - first]),
        caches=[
            replace(c, lengths=c.lengths[1:2], table=c.table[1:2] if c.table is not None else None)
            for c in cut.caches
        ],
        call=replace(
            cut.call,
            num_targets=torch.tensor([20]),
            timestamps=together.times[cut.fresh][first:last],
        ),
    )[0]
    assert torch.equal(alone, want[first:last])


@NATIVE
def test_what_does_not_fit_is_refused() -> None:
    cut = Joined(MaskSpec(), lengths=[20, 5], targets=[3, 1]).cut([11, 2], paged=True)
    layer = cut.joined.layers[0]
    rough = tuple(parameter.float() for parameter in layer.linear)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"layers": [replace(layer, linear=rough)] * 2}, "dtype of x"),
        ({"layers": cut.joined.layers[:1]}, "belong to each"),
        ({"shape": replace(cut.joined.shape, num_heads=4)}, "other parameters"),
        ({"caches": [replace(c, k=c.k.float()) for c in cut.caches]}, "the cache is Float"),
        ({"caches": [replace(c, k=c.k[..., :3]) for c in cut.caches]}, "heads of 6"),
        ({"caches": [replace(c, lengths=c.lengths[:1]) for c in cut.caches]}, "rows of its"),
        ({"caches": [replace(c, lengths=c.lengths + 90) for c in cut.caches]}, "lengths says"),
        ({"offsets": torch.tensor([0, 9, 99])}, "offsets must ascend"),
        ({"call": replace(cut.call, num_targets=torch.tensor([10, 0]))}, "never cached"),
        ({"call": replace(cut.call, divisor=0.0)}, "divisor must be positive"),
        ({"call": replace(cut.call, mask=SPECS["mtgr"])}, "need the timestamps"),
        ({"keep": False, "states": False}, "neither"),
    ]
    for changes, text in cases:
        with pytest.raises((ValueError, RuntimeError), match=text):
            cut.run(**changes)


@NATIVE
def test_usable_only_for_inference_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    x, weight = torch.zeros(3, 4), torch.zeros(8, 4)
    assert not usable(x, weight, "AUTO"), "gradients would be lost"
    with torch.no_grad():
        assert usable(x, weight, "AUTO") and usable(x, weight, "PYTORCH")
        assert not usable(x, weight, "CPU_TORCH") and not usable(x, weight, "TRITON")
        assert not usable(x.half(), weight.half(), "AUTO")
        assert not usable(x, weight.double(), "AUTO")
        assert not usable(x.to("meta"), weight, "AUTO")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not usable(x, weight, "AUTO")
        with FakeTensorMode() as fake:
            assert not usable(fake.from_tensor(x), weight, "AUTO")
        monkeypatch.setattr(stu_cached, "MAX_TOKENS", 2)
        assert not usable(x, weight, "AUTO")
