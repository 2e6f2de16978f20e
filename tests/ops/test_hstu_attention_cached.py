# SPDX-License-Identifier: Apache-2.0
"""Cached STU attention: every split of a row against the row in one piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cached_cases import PAGE, SPECS, Cut, Joined, close, offsets_of, pages_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tzgen.ops.hstu_attention import MaskSpec
from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention.dispatch import native_ready
from tzgen.ops.hstu_attention_cached import (
    CachedKV,
    cpu,
    hstu_attention_cached,
    hstu_attention_cached_reference,
)

NATIVE = pytest.mark.skipif(not native_ready(torch.float32), reason="needs a C++ compiler")
KERNELS = ["CPU_TORCH", pytest.param("CPU_NATIVE", marks=NATIVE)]


def run(cut: Cut, kernel: str, **changes: Any) -> Tensor:
    options = {**cut.options, **changes}
    return hstu_attention_cached(*cut.args, max_len=1 << 20, kernel=kernel, **options)


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "BLOCK", 3)
    monkeypatch.setattr(cpu, "KEYS", 5)


@pytest.mark.parametrize("paged", [False, True], ids=["contiguous", "paged"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "rab"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_split_is_the_joined_row(
    spec: MaskSpec, biased: bool, paged: bool, kernel: str, small_tiles: None
) -> None:
    """13 history tokens and 4 candidates, cut everywhere in the history; a second row beside it."""
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        joined = Joined(spec, lengths=[17, 9], targets=[4, 2], biased=biased, dtype=dtype)
        for split in range(14):
            cut = joined.cut([split, min(split, 7)], paged=paged)
            close(run(cut, kernel), cut.want, tolerance)


@pytest.mark.parametrize("biased", [False, True], ids=["", "rab"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_reference_is_the_joined_row(spec: MaskSpec, biased: bool) -> None:
    joined = Joined(spec, lengths=[12, 5, 3], targets=[3, 0, 0], biased=biased)
    for cached in ([0, 0, 0], [4, 5, 1], [9, 3, 3]):
        for paged in (False, True):
            cut = joined.cut(cached, paged=paged)
            got = hstu_attention_cached_reference(*cut.args, **cut.options)
            close(got, cut.want, 1e-12)


SHAPES = {
    "ragged deltas": ([20, 9, 14, 6], [3, 0, 14, 1], [11, 2, 0, 5]),
    "nothing cached": ([7, 1, 12], [2, 0, 0], [0, 0, 0]),
    "nothing new": ([7, 1, 12], [0, 0, 0], [7, 1, 12]),
    "nothing at all": ([0, 0], [0, 0], [0, 0]),
    "one row without new tokens": ([8, 5, 9], [2, 0, 3], [6, 5, 6]),
    "score": ([30, 12, 5], [20, 4, 5], [10, 8, 0]),
    "one token": ([2, 1, 1], [1, 1, 0], [1, 0, 0]),
    "no rows": ([], [], []),
}


@pytest.mark.parametrize("paged", [False, True], ids=["contiguous", "paged"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, paged: bool, kernel: str) -> None:
    lengths, targets, cached = SHAPES[shape]
    joined = Joined(MaskSpec(), lengths=lengths, targets=targets, biased=True) if lengths else None
    if joined is None:
        out = hstu_attention_cached(
            *(torch.zeros(0, 2, width) for width in (6, 6, 10)),
            torch.zeros(1, dtype=torch.int64),
            CachedKV(torch.zeros(0, 2, 6), torch.zeros(0, 2, 10), torch.zeros(0).long(), 0),
            max_len=0,
            alpha=1.0,
            divisor=1.0,
            mask=MaskSpec(),
            kernel=kernel,
        )
        assert out.shape == (0, 2, 10)
        return
    cut = joined.cut(cached, paged=paged)
    close(run(cut, kernel), cut.want, 1e-12)


@pytest.mark.parametrize("cached", [PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 3 * PAGE + 1])
def test_page_borders(cached: int, kernel: str) -> None:
    joined = Joined(MaskSpec(contextual_len=1), lengths=[cached + 5, PAGE], targets=[3, 1])
    cut = joined.cut([cached, 2], paged=True)
    close(run(cut, kernel), cut.want, 1e-12)


@pytest.mark.parametrize("cached", [255, 256, 257, 1023, 1025])
def test_real_tile_borders(cached: int, kernel: str) -> None:
    joined = Joined(
        MaskSpec(contextual_len=1), lengths=[cached + 20], targets=[9], dtype=torch.float32
    )
    cut = joined.cut([cached], paged=True)
    close(run(cut, kernel), cut.want, 1e-5)


def test_a_long_append_is_cut_into_blocks(kernel: str) -> None:
    joined = Joined(MaskSpec(max_attn_len=300), lengths=[900], targets=[10], dtype=torch.float32)
    cut = joined.cut([33])
    close(run(cut, kernel), cut.want, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_inputs_compute_in_float32(dtype: torch.dtype, kernel: str) -> None:
    joined = Joined(MaskSpec(), lengths=[40], targets=[8], dtype=dtype)
    cut = joined.cut([30], paged=True)
    close(run(cut, kernel), cut.want, 1e-2)  # both round float32 results once


def test_strided_views_of_uvqk(kernel: str) -> None:
    joined = Joined(MaskSpec(), lengths=[30], targets=[4], widths=(6, 6), dtype=torch.float32)
    cut = joined.cut([20])
    q, k, v = cut.args[:3]
    flat = torch.stack([v, q, k], dim=1).flatten(1)
    v, q, k = (part.unflatten(1, (2, 6)) for part in flat.split(12, dim=1))
    assert not q.is_contiguous()
    held = torch.cat([cut.cache.k, cut.cache.v], dim=2)
    cache = replace(cut.cache, k=held[..., :6], v=held[..., 6:])
    assert not cache.k.is_contiguous()
    cut.args = (q, k, v, cut.args[3], cache)
    close(run(cut, kernel), cut.want, 1e-5)


def test_a_row_does_not_see_its_neighbours(kernel: str) -> None:
    joined = Joined(MaskSpec(), lengths=[9, 14, 7], targets=[2, 3, 1], dtype=torch.float32)
    cut = joined.cut([5, 8, 6])
    q, k, v, offsets, cache = cut.args
    for x in (q, k, v):
        x[:4] = torch.nan
        x[10:] = torch.nan
    for x in (cache.k, cache.v):
        x[:5] = torch.nan
        x[13:] = torch.nan
    out = hstu_attention_cached(q, k, v, offsets, cache, max_len=6, kernel=kernel, **cut.options)
    close(out[4:10], cut.want[4:10], 1e-5)


@pytest.mark.parametrize("width", [1, 15, 16, 17, 33, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_widths_and_query_counts(width: int, dtype: torch.dtype, kernel: str) -> None:
    """Whole vectors and parts of them; many queries, so that every register tile is used."""
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for new in (1, 16, 19, 97, 130):
        joined = Joined(
            MaskSpec(), lengths=[150 + new], targets=[new], dtype=dtype, widths=(width, width)
        )
        cut = joined.cut([150], paged=True)
        close(run(cut, kernel), cut.want, tolerance)


def test_equal_rows_give_equal_bits_wherever_they_lie(kernel: str) -> None:
    """Alone, beside others, and in a contiguous cache that starts elsewhere."""
    joined = Joined(MaskSpec(), lengths=[60, 37, 60], targets=[9, 4, 9], dtype=torch.float32)
    for x in (joined.q, joined.k, joined.v):
        x[97:] = x[:60]
    cut = joined.cut([45, 20, 45])
    out = run(cut, kernel)
    assert torch.equal(out[:15], out[32:])
    alone = Joined(MaskSpec(), lengths=[60], targets=[9], dtype=torch.float32)
    alone.q, alone.k, alone.v = joined.q[:60], joined.k[:60], joined.v[:60]
    assert torch.equal(run(alone.cut([45]), kernel), out[:15])


@NATIVE
def test_auto_takes_the_native_form_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Tensor:
        raise AssertionError("the pure-torch form was called")

    cut = Joined(MaskSpec(), lengths=[9], targets=[2], dtype=torch.float32).cut([4])
    monkeypatch.setattr(cpu, "forward", refuse)
    close(run(cut, "AUTO"), cut.want, 1e-5)
    with pytest.raises(AssertionError, match="pure-torch"):
        run(cut, "CPU_TORCH")


def test_candidates_in_micro_batches_are_the_same(kernel: str) -> None:
    """M-FALCON: what a candidate gets does not depend on who is scored beside it."""
    joined = Joined(MaskSpec(contextual_len=2), lengths=[50], targets=[20], biased=True)
    cut = joined.cut([30], paged=True)
    q, k, v, _, cache = cut.args
    times = cut.options["timestamps"]
    for first in range(0, 20, 7):
        part = slice(first, min(first + 7, 20))
        count = part.stop - part.start
        out = hstu_attention_cached(
            q[part],
            k[part],
            v[part],
            offsets_of([count]),
            cache,
            max_len=count,
            kernel=kernel,
            **{
                **cut.options,
                "num_targets": torch.tensor([count]),
                "timestamps": times[part],
            },
        )
        close(out, cut.want[part], 1e-12)


MUTANTS: dict[str, Callable[[Cut], Tensor]] = {
    "zero output": lambda cut: run(cut, "AUTO") * 0,
    "wrong alpha": lambda cut: run(cut, "AUTO", alpha=cut.options["alpha"] * 1.01),
    "wrong divisor": lambda cut: run(cut, "AUTO", divisor=12.1),
    "off-by-one window": lambda cut: run(cut, "AUTO", mask=MaskSpec(2, 9)),
    "no targets": lambda cut: run(cut, "AUTO", num_targets=None),
    "one target fewer": lambda cut: run(
        cut, "AUTO", num_targets=(cut.options["num_targets"] - 1).clamp(min=0)
    ),
    "one cached token fewer": lambda cut: hstu_attention_cached(
        *cut.args[:4],
        replace(cut.cache, lengths=cut.cache.lengths - 1),
        max_len=99,
        **cut.options,
    ),
    "two pages swapped": lambda cut: hstu_attention_cached(
        *cut.args[:4],
        replace(cut.cache, table=cut.cache.table[:, [1, 0, *range(2, cut.cache.table.size(1))]]),
        max_len=99,
        **cut.options,
    ),
    "forgotten table": lambda cut: run(cut, "AUTO", position_bias=cut.options["position_bias"] * 0),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_comparison_catches(mutant: str) -> None:
    joined = Joined(MaskSpec(2, 10), lengths=[33, 25], targets=[4, 6], biased=True)
    cut = joined.cut([20, 15], paged=True)
    close(run(cut, "AUTO"), cut.want, 1e-10)
    with pytest.raises(AssertionError, match="error"):
        close(MUTANTS[mutant](cut), cut.want, 1e-5)


class Copies(TorchDispatchMode):
    """Sizes of all results that are no views of what existed before."""

    def __init__(self, *inputs: Tensor) -> None:
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in inputs}
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in self.known:
            self.sizes.append(out.numel())
        return out


@pytest.mark.parametrize("paged", [False, True], ids=["contiguous", "paged"])
def test_the_cache_is_not_copied(paged: bool) -> None:
    """Scattered pages are gathered KEYS tokens at a time; all else is read where it lies."""
    heads, width, scored = 2, 32, 8
    joined = Joined(
        MaskSpec(), lengths=[4000], targets=[scored], dtype=torch.float32, widths=(width, width)
    )
    cut = joined.cut([4000 - scored], paged=paged)
    call = Call(MaskSpec(), scored, 1.0, 1.0, 0.301, cut.options["num_targets"], None, None, None)
    q, k, v, offsets, cache = cut.args
    with Copies(cache.k, cache.v) as copies:
        cpu.forward(q, k, v, offsets, cache, call)
    tile = heads * cpu.KEYS * (width if paged else scored)
    assert max(copies.sizes) <= tile < cache.k.numel() / 2


class Attention(nn.Module):
    """The op over a paged cache, with tensors only."""

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        offsets: Tensor,
        held_k: Tensor,
        held_v: Tensor,
        lengths: Tensor,
        table: Tensor,
        targets: Tensor,
    ) -> Tensor:
        cache = CachedKV(held_k, held_v, lengths, 1 << 20, table)
        return hstu_attention_cached(
            q,
            k,
            v,
            offsets,
            cache,
            max_len=1 << 20,
            alpha=0.5,
            divisor=7.0,
            mask=MaskSpec(contextual_len=1),
            num_targets=targets,
        )


def export_arguments(lengths: list[int], cached: list[int]) -> tuple[Tensor, ...]:
    joined = Joined(MaskSpec(), lengths=lengths, targets=[1] * len(lengths), dtype=torch.float32)
    cut = joined.cut(cached, paged=True)
    q, k, v, offsets, cache = cut.args
    assert cache.table is not None
    return (
        q,
        k,
        v,
        offsets,
        cache.k,
        cache.v,
        cache.lengths,
        cache.table,
        cut.options["num_targets"],
    )


def test_exports_as_one_node_with_dynamic_rows_tokens_and_cache() -> None:
    any_size = torch.export.Dim.DYNAMIC
    names = ("q", "k", "v", "offsets", "held_k", "held_v", "lengths", "table", "targets")
    shapes: dict[str, Any] = {name: {0: any_size} for name in names}
    shapes["table"] = {0: any_size, 1: any_size}
    example = export_arguments([9, 7, 6], [6, 3, 4])
    exported = torch.export.export(Attention(), example, dynamic_shapes=shapes, strict=False)
    called = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert [n for n in called if "tzgen" in n] == ["tzgen.hstu_attention_cached.default"]
    for lengths, cached in (([12, 5], [3, 4]), ([40, 1, 2, 9], [30, 0, 1, 8])):
        other = export_arguments(lengths, cached)
        assert torch.equal(exported.module()(*other), Attention()(*other))


def test_fake_tensors_agree_with_the_op() -> None:
    cut = Joined(MaskSpec(), lengths=[9], targets=[2], dtype=torch.float32).cut([4], paged=True)
    q, k, v, offsets, cache = cut.args
    arguments = (
        *(q, k, v, offsets, cache.k, cache.v, cache.lengths, cache.table, None),
        *(cut.options["num_targets"], None, None, None),
        *(5, 4, 0.5, 7.0, 0.301, [int(x) for x in vars(MaskSpec()).values()], "AUTO"),
    )
    torch.library.opcheck(
        torch.ops.tzgen.hstu_attention_cached.default,
        arguments,
        test_utils=("test_schema", "test_faketensor"),
    )


def refused(match: str, **changes: Any) -> None:
    cut = Joined(MaskSpec(), lengths=[9, 5], targets=[2, 1], dtype=torch.float32).cut([4, 2])
    names = ("q", "k", "v", "offsets", "cache")
    arguments = dict(zip(names, cut.args, strict=True))
    options = {"max_len": 9, **cut.options}
    for name, value in changes.items():
        if name in names:
            arguments[name] = value(arguments[name])
        else:
            options[name] = value
    with pytest.raises(ValueError, match=match):
        hstu_attention_cached(**arguments, **options)


def test_what_is_refused() -> None:
    refused("no kernel 'FAST'; it has AUTO", kernel="FAST")
    refused("needs a CUDA device", kernel="TRITON")
    refused(r"\[Lq, H, attention_dim\]", q=lambda q: q[:, :1])
    refused("offsets must be int64", offsets=lambda x: x.int())
    refused("divisor", divisor=0.0)
    refused("timestamps int64", mask=MaskSpec(timestamp_mask=True))
    refused("must be int64", timestamps=torch.zeros(8))
    refused("columns", position_bias=torch.zeros(2, 4))
    refused("1 or H", time_bias=torch.zeros(3, 4), timestamps=torch.zeros(8, dtype=torch.int64))
    refused("heads and dim", cache=lambda c: replace(c, k=c.k[:, :1]))
    refused("float64, the new tokens are torch.float32", cache=lambda c: replace(c, v=c.v.double()))
    refused("disagree", cache=lambda c: replace(c, k=c.k[:3]))
    refused("lengths must be int64", cache=lambda c: replace(c, lengths=c.lengths.int()))
    refused("table must be int64", cache=lambda c: replace(pages_of(c), table=torch.zeros(2, 3)))
    refused(
        "timestamps of cached tokens",
        mask=MaskSpec(timestamp_mask=True),
        timestamps=torch.zeros(8, dtype=torch.int64),
    )


def test_sizes_that_contradict_the_tensors_are_refused(kernel: str) -> None:
    refused("9 targets among 5 new tokens", kernel=kernel, num_targets=torch.tensor([9, 1]))
    longer = {"lengths": torch.tensor([4, 3])}
    refused(
        "3 cached tokens, but the cache holds 2",
        kernel=kernel,
        cache=lambda c: replace(c, **longer),
    )
    far = torch.full((2, 9), 99)
    refused("holds 0 for it", kernel=kernel, cache=lambda c: replace(pages_of(c), table=far))


def test_gradients_are_refused() -> None:
    refused("no gradients: call it under", q=lambda q: q.requires_grad_())
    cut = Joined(MaskSpec(), lengths=[9], targets=[2], biased=True).cut([4])
    cut.options["time_bias"].requires_grad_()
    with torch.no_grad():
        close(run(cut, "AUTO"), cut.want, 1e-12)
