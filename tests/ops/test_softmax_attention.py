# SPDX-License-Identifier: Apache-2.0
"""Softmax attention: against a loop over rows in float64, SDPA, T5's bias by hand, and export."""

from __future__ import annotations

import doctest
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzgen.ops.softmax_attention import (
    MaskSpec,
    buckets,
    distance_table,
    grouped,
    relative_buckets,
    softmax_attention,
    softmax_attention_reference,
    varlen,
)
from tzgen.ops.softmax_attention.call import Call

LENGTHS = [5, 0, 1, 8, 9, 33, 3, 20]
KEYS = [4, 7, 0, 1, 40, 2, 3, 9]
TARGETS = [2, 0, 1, 0, 9, 30, 0, 5]
NAMES = ("out", "grad_q", "grad_k", "grad_v", "grad_bias")
MASKS = [
    pytest.param(MaskSpec(), id="causal"),
    pytest.param(MaskSpec(max_attn_len=3), id="window"),
    pytest.param(MaskSpec(sla_k1=4, sla_k2=2), id="semi-local"),
]


class Case:
    """Scores of a few units, so that the softmax is far from flat."""

    def __init__(
        self,
        lengths: list[int] = LENGTHS,
        keys: list[int] | None = None,
        *,
        heads: int = 2,
        bias: int = 0,
        dtype: torch.dtype = torch.float64,
        **options: Any,
    ) -> None:
        make = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            value = torch.randn(shape, generator=make, dtype=torch.float64)
            return value.to(dtype).requires_grad_()

        total = sum(lengths if keys is None else keys)
        self.q, self.k = normal(sum(lengths), heads, 6), normal(total, heads, 6)
        self.v = normal(total, heads, 10)
        self.offsets = torch.tensor([0, *lengths]).cumsum(0)
        self.bounds = {"max_len": max(lengths), "max_key_len": max(keys or lengths)}
        self.options = {"scale": 1.5, **options}
        if keys is not None:
            self.options["key_offsets"] = torch.tensor([0, *keys]).cumsum(0)
        if bias:
            self.options["position_bias"] = normal(bias, 11)
        self.weights = torch.randn(sum(lengths), heads, 10, generator=make).to(dtype)

    def run(self, *, reference: bool = False, **changes: Any) -> dict[str, Tensor]:
        options = {**self.options, **changes}
        if reference:
            out = softmax_attention_reference(self.q, self.k, self.v, self.offsets, **options)
        else:
            options |= self.bounds
            out = softmax_attention(self.q, self.k, self.v, self.offsets, **options)
        leaves = [self.q, self.k, self.v]
        leaves += [options["position_bias"]] if "position_bias" in options else []
        grads = torch.autograd.grad(out, leaves, self.weights)
        return dict(zip(NAMES, (out.detach(), *grads), strict=False))


def same(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-11) -> None:
    assert got.keys() == want.keys()
    for name, reference in want.items():
        error = (got[name].double() - reference.double()).norm()
        assert error <= tolerance * reference.norm().clamp(min=1e-3), f"{name}: {error:.1e}"


CASES = {
    "bidirectional": {},
    "bidirectional bias": {"bias": 2},
    "cross": {"keys": KEYS},
    "cross of one query a row": {"lengths": [1] * 8, "keys": KEYS},
    "causal": {"mask": MaskSpec()},
    "causal shared bias": {"mask": MaskSpec(), "bias": 1},
    "targets": {"mask": MaskSpec(), "num_targets": TARGETS},
    "targets bias": {"mask": MaskSpec(), "num_targets": TARGETS, "bias": 2},
    "window": {"mask": MaskSpec(max_attn_len=3), "bias": 2},
    "semi-local": {"mask": MaskSpec(sla_k1=4, sla_k2=2), "num_targets": TARGETS},
}
PREFIXED = [5, 2, 3, 8, 9, 33, 3, 20]
CASES["contextual"] = {
    "lengths": PREFIXED,
    "mask": MaskSpec(contextual_len=2),
    "num_targets": [2, 0, 1, 0, 7, 30, 0, 5],
    "bias": 2,
}
CASES["contextual stable"] = {
    "lengths": PREFIXED,
    "mask": MaskSpec(contextual_len=2, append_stable=True),
}


def case(name: str, **changes: Any) -> Case:
    options = {**CASES[name], **changes}
    if "num_targets" in options:
        options["num_targets"] = torch.tensor(options["num_targets"])
    return Case(**options)


@pytest.mark.parametrize("tiling", ["one", "blocks", "padded"])
@pytest.mark.parametrize("name", CASES)
def test_matches_the_loop_over_rows(
    name: str, tiling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows in one group; a group a row and blocks of queries; and as other devices do it."""
    monkeypatch.setattr(grouped, "CPU_BYTES", {"one": 1 << 30, "blocks": 64}.get(tiling, 4096))
    monkeypatch.setattr(grouped, "SHORTEST_BLOCK", 4)
    if tiling == "padded":
        monkeypatch.setattr(grouped, "_sorted_rows", grouped._consecutive_rows)
    one = case(name)
    same(one.run(), one.run(reference=True))


@pytest.mark.parametrize("name", ["bidirectional", "causal", "cross"])
def test_matches_sdpa(name: str) -> None:
    one = case(name)
    got = one.run()["out"]
    keys = one.options.get("key_offsets", one.offsets)
    for row in range(8):
        at, key_at = (slice(int(o[row]), int(o[row + 1])) for o in (one.offsets, keys))
        q, k, v = (x.transpose(0, 1) for x in (one.q[at], one.k[key_at], one.v[key_at]))
        if q.size(1) and k.size(1):
            causal = "mask" in one.options
            want = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1.5)
            torch.testing.assert_close(got[at], want.transpose(0, 1))
        else:
            assert not got[at].any(), "a query without keys gives zeros"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions(dtype: torch.dtype) -> None:
    """Computed in float32, so that only the rounding of inputs and outputs counts."""
    one = case("targets bias", dtype=dtype)
    got = one.run()
    assert all(value.dtype == dtype for value in got.values())
    wide = case("targets bias")
    for leaf in ("q", "k", "v", "weights"):
        setattr(wide, leaf, getattr(one, leaf).detach().double())
    for leaf in ("q", "k", "v"):
        getattr(wide, leaf).requires_grad_()
    table = one.options["position_bias"].detach().double().requires_grad_()
    wide.options["position_bias"] = table
    same(got, wide.run(reference=True), 1e-5 if dtype == torch.float32 else 2e-2)


def test_strided_views_of_one_projection() -> None:
    one = case("causal")
    qkv = torch.cat([one.q.detach(), one.k.detach(), one.v.detach()], -1)
    parts = qkv.requires_grad_().split([6, 6, 10], -1)
    out = softmax_attention(*parts, one.offsets, max_len=33, scale=1.5, mask=MaskSpec())
    torch.testing.assert_close(out, one.run()["out"])
    out.backward(one.weights)
    want = torch.cat(list(one.run().values())[1:], -1)
    torch.testing.assert_close(qkv.grad, want)


def test_rows_do_not_see_each_other() -> None:
    one = case("bidirectional bias")
    before = one.run()["out"]
    with torch.no_grad():
        one.k[:5] = float("nan")
        one.v[:5] = float("nan")
    after = one.run()["out"]
    assert torch.equal(before[5:], after[5:]) and after[:5].isnan().all()


@pytest.mark.parametrize("lengths", [[0], [0, 0], [1], [3]])
@pytest.mark.parametrize("keys", [None, [0], [2]])
def test_few_rows(lengths: list[int], keys: list[int] | None) -> None:
    if keys is not None:
        keys = keys * len(lengths)
    one = Case(lengths, keys)
    same(one.run(), one.run(reference=True))


def test_no_rows() -> None:
    one = Case([0])
    out = softmax_attention(one.q, one.k, one.v, one.offsets[:1], max_len=0, scale=1.0)
    assert out.shape == (0, 2, 10)
    out.sum().backward()
    assert one.q.grad is not None and one.q.grad.shape == (0, 2, 6)


def test_gradients_by_differences() -> None:
    one = Case([3, 1, 4], bias=2, mask=MaskSpec())
    bias = one.options["position_bias"]

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        options = {**one.options, "position_bias": bias}
        return softmax_attention(q, k, v, one.offsets, max_len=4, **options)

    assert torch.autograd.gradcheck(run, (one.q, one.k, one.v, bias))


@pytest.mark.parametrize("mask", MASKS)
def test_scores_are_bounded_by_a_group(mask: MaskSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long row is cut into blocks of queries, and no tensor holds all its pairs."""
    largest = 0
    real = torch.softmax

    def softmax(x: Tensor, dim: int) -> Tensor:
        nonlocal largest
        largest = max(largest, x.numel())
        return real(x, dim)

    monkeypatch.setattr(torch, "softmax", softmax)
    Case([1500, 3], heads=1, mask=mask, dtype=torch.float32).run()
    assert largest * 4 <= grouped.CPU_BYTES


# ---- T5's relative bias ----


def t5_bucket(distance: int, count: int, most: int, bidirectional: bool) -> int:
    """Written again from the paper's description, with integers and one logarithm."""
    base = 0
    if bidirectional:
        count //= 2
        base = count if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = count // 2
    if distance < exact:
        return base + distance
    steps = math.log(distance / exact) / math.log(most / exact) * (count - exact)
    return base + min(exact + math.floor(steps + 1e-6), count - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("count", "most"), [(32, 128), (8, 20), (4, 3)])
def test_t5_buckets(count: int, most: int, bidirectional: bool) -> None:
    distance = torch.arange(-200, 201)
    got = relative_buckets(
        distance, num_buckets=count, max_distance=most, bidirectional=bidirectional
    )
    want = [t5_bucket(r, count, most, bidirectional) for r in distance.tolist()]
    assert got.tolist() == want
    assert doctest.testmod(buckets).failed == 0


def test_too_few_buckets_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 buckets"):
        relative_buckets(torch.arange(3), num_buckets=2, max_distance=9, bidirectional=True)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_t5_bias_reaches_the_scores_and_the_table(bidirectional: bool) -> None:
    make = torch.Generator().manual_seed(1)
    table = torch.randn(2, 8, generator=make, dtype=torch.float64).requires_grad_()
    q, k, v = (torch.randn(30, 2, 4, generator=make, dtype=torch.float64) for _ in range(3))
    bias = distance_table(table, max_distance=20, bidirectional=bidirectional)
    mask = None if bidirectional else MaskSpec()
    offsets = torch.tensor([0, 30])
    out = softmax_attention(q, k, v, offsets, max_len=30, scale=1.0, mask=mask, position_bias=bias)
    columns = torch.tensor(
        [[t5_bucket(j - i, 8, 20, bidirectional) for j in range(30)] for i in range(30)]
    )
    scores = torch.einsum("ihd,jhd->hij", q, k) + table[:, columns]
    if not bidirectional:
        scores = scores.masked_fill(torch.ones(30, 30).triu(1).bool(), float("-inf"))
    want = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v)
    torch.testing.assert_close(out, want)
    weights = torch.randn(out.shape, generator=make, dtype=torch.float64)
    (got,) = torch.autograd.grad(out, table, weights)
    (truth,) = torch.autograd.grad(want, table, weights)
    torch.testing.assert_close(got, truth)


# ---- the op ----


class Layer(nn.Module):
    """Cross-attention, then causal self-attention with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(2, 7, dtype=torch.float64))

    def forward(self, q: Tensor, lengths: Tensor, k: Tensor, key_lengths: Tensor) -> Tensor:
        offsets, keys = (F.pad(n.cumsum(0), (1, 0)) for n in (lengths, key_lengths))
        options: dict[str, Any] = {"scale": 0.5, "max_len": 4096}
        x = softmax_attention(q, k, k, offsets, key_offsets=keys, **options)
        return softmax_attention(
            x, x, x, offsets, mask=MaskSpec(), position_bias=self.bias, **options
        )


def test_exports_as_one_node_with_dynamic_sizes() -> None:
    def inputs(lengths: list[int], keys: list[int]) -> tuple[Tensor, ...]:
        make = torch.Generator().manual_seed(len(lengths))
        q = torch.randn(sum(lengths), 2, 6, generator=make, dtype=torch.float64)
        k = torch.randn(sum(keys), 2, 6, generator=make, dtype=torch.float64)
        return q, torch.tensor(lengths), k, torch.tensor(keys)

    layer = Layer().eval()
    shapes = tuple({0: torch.export.Dim.AUTO} for _ in range(4))
    example = inputs([2, 3], [4, 2])
    with torch.no_grad():
        program = torch.export.export(layer, example, dynamic_shapes=shapes, strict=False)
    nodes = [str(node.target) for node in program.graph.nodes]
    assert nodes.count("tzgen.softmax_attention.default") == 2
    for sizes in (([5, 0, 9], [0, 3, 30]), ([1], [1]), ([0], [4])):
        other = inputs(*sizes)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(*other), layer(*other))


def test_the_op_keeps_its_contract() -> None:
    one = case("targets bias", dtype=torch.float32)
    op = torch.ops.tzgen.softmax_attention.default
    targets, bias = one.options["num_targets"], one.options["position_bias"]
    fields = [0, 0, 1, 0, 0, 0, 0, 0, 0]
    arguments = (one.q, one.k, one.v, one.offsets, None, targets, bias, 33, 33, 1.5, fields)
    torch.library.opcheck(op, arguments)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kernel": "FLASH"}, "it has AUTO, PYTORCH, TRITON, VARLEN"),
        ({"kernel": "VARLEN"}, "needs a CUDA device, and q lies on cpu. Use AUTO"),
        ({"num_targets": torch.zeros(8, dtype=torch.int64)}, "num_targets needs a mask"),
        ({"mask": MaskSpec(timestamp_mask=True)}, "has no timestamp_mask"),
        ({"position_bias": torch.zeros(2, 4)}, "odd"),
        ({"position_bias": torch.zeros(3, 5)}, "1 or 2"),
        ({"key_offsets": torch.tensor([0, 1])}, "of one B"),
        ({"key_offsets": torch.zeros(9, dtype=torch.int32)}, "int64"),
    ],
)
def test_refusals(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        case("bidirectional").run(**changes)


def test_a_mask_is_refused_across_rows() -> None:
    with pytest.raises(ValueError, match="cross-attention takes none"):
        case("cross").run(mask=MaskSpec())


def test_triton_means_the_best_there_is() -> None:
    one = case("causal")
    assert torch.equal(one.run(kernel="TRITON")["out"], one.run(kernel="PYTORCH")["out"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"mask": MaskSpec()}, ""),
        ({"mask": MaskSpec(max_attn_len=4)}, ""),
        ({"mask": MaskSpec(contextual_len=1)}, "causal and max_attn_len"),
        ({"num_targets": torch.tensor([1])}, "no targets"),
        ({"position_bias": torch.zeros(1, 3)}, "no bias"),
    ],
)
def test_what_torchs_kernel_can_say(changes: dict[str, Any], said: str) -> None:
    class OnCuda:
        """Looks like a CUDA tensor to the one who asks."""

        is_cuda, dtype = True, torch.bfloat16

        def size(self, _: int) -> int:
            return 64

    offsets = torch.tensor([0, 4])
    fields = {"mask": None, "num_targets": None, "position_bias": None, **changes}
    call = Call(offsets, offsets, 4, 4, 1.0, **fields)
    reason = varlen.refusal(OnCuda(), OnCuda(), call)  # type: ignore[arg-type]
    assert said in reason if said else reason == ""


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["bidirectional", "cross", "causal", "window"])
def test_torchs_kernel_on_a_gpu(name: str) -> None:
    one = case(name, bias=0, dtype=torch.bfloat16)
    q, k, v = (F.pad(x.detach(), (0, 32 - x.size(2))).cuda() for x in (one.q, one.k, one.v))
    options = {
        key: value.cuda() if isinstance(value, Tensor) else value
        for key, value in {**one.options, **one.bounds}.items()
    }
    leaves = [x.requires_grad_() for x in (q, k, v)]
    outs = {}
    for kernel in ("VARLEN", "PYTORCH"):
        out = softmax_attention(*leaves, one.offsets.cuda(), kernel=kernel, **options)
        outs[kernel] = [out, *torch.autograd.grad(out.float().square().sum(), leaves)]
    for got, want in zip(outs["VARLEN"], outs["PYTORCH"], strict=True):
        torch.testing.assert_close(got.float(), want.float(), rtol=3e-2, atol=3e-2)
