# SPDX-License-Identifier: Apache-2.0
"""STU attention: the blocked path against the reference, by name, for output and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import BLOCK, MUTANTS, NAMES, SPECS, Case, compare, naive, op
from dense_hstu import pair_mask
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tzgen.ops.hstu_attention import MaskSpec, cpu, cpu_rows, hstu_attention_reference
from tzgen.ops.hstu_attention.call import Call

fast = op("CPU_TORCH")


@pytest.fixture(params=["grouped", "strips", "blocked"])
def tiling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in several groups, in one that is cut into strips of 8, and cut into tiles of 8 x 5."""
    if request.param == "blocked":
        monkeypatch.setattr(cpu_rows, "TOGETHER", 2)
        monkeypatch.setattr(cpu_rows, "BLOCK", BLOCK)
        monkeypatch.setattr(cpu_rows, "KEYS", 5)
    elif request.param == "strips":
        monkeypatch.setattr(cpu_rows, "STRIP", BLOCK)
    else:
        monkeypatch.setattr(cpu_rows, "TILE_BYTES", 8000)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("biased", [False, True], ids=["", "rab"])
def test_matches_the_reference(spec: MaskSpec, biased: bool, tiling: None) -> None:
    case = Case(spec, biased=biased, dtype=torch.float64)
    compare(case.run(fast), case.run(hstu_attention_reference), 1e-13)


@pytest.mark.parametrize("length", [255, 256, 257, 513])
def test_matches_the_reference_at_the_real_tile_borders(length: int) -> None:
    case = Case(MaskSpec(contextual_len=1), lengths=[length, 2], targets=[20, 1], widths=(4, 4))
    compare(case.run(fast), case.run(hstu_attention_reference), 1e-5)


def test_reference_is_the_formula() -> None:
    """One row, pair by pair."""
    case = Case(MaskSpec(), lengths=[7], targets=[2], dtype=torch.float64)
    seen = pair_mask(7, targets=2)
    want = torch.zeros_like(case.v)
    for head in range(2):
        for i in range(7):
            for j in range(7):
                score = case.alpha * (case.q[i, head] * case.k[j, head]).sum()
                if seen[i, j]:
                    weight = score * torch.sigmoid(score) / case.divisor
                    want[i, head] = want[i, head] + weight * case.v[j, head]
    got = case.run(hstu_attention_reference)["out"]
    torch.testing.assert_close(got, want.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_that_of_the_dtype(dtype: torch.dtype, tiling: None) -> None:
    """Against float64: at most 2x (forward) or 5x (backward) the error of the naive same dtype."""
    case = Case(MaskSpec(), dtype=dtype)
    want = case.in_float64().run(hstu_attention_reference)
    got, plain = case.run(fast), case.run(naive)
    for name, truth in want.items():
        ours = (got[name].double() - truth).norm() / truth.norm()
        theirs = (plain[name].double() - truth).norm() / truth.norm()
        assert ours <= theirs * (2 if name == "out" else 5), f"{name}: {ours:.1e} vs {theirs:.1e}"


def test_gradients_are_derivatives(tiling: None) -> None:
    case = Case(
        MaskSpec(contextual_len=1),
        lengths=[5, 4],
        targets=[2, 1],
        biased=True,
        dtype=torch.float64,
        widths=(2, 3),
    )

    def call(q: Tensor, k: Tensor, v: Tensor, position: Tensor, time: Tensor) -> Tensor:
        return fast(
            q,
            k,
            v,
            case.offsets,
            alpha=case.alpha,
            divisor=3.0,
            mask=case.spec,
            num_targets=case.targets,
            timestamps=case.times,
            position_bias=position,
            time_bias=time,
        )

    torch.autograd.gradcheck(call, (case.q, case.k, case.v, *case.tables.values()))


def test_reference_never_depends_on_the_rest_of_the_batch() -> None:
    """Bitwise: alone, beside others, and in another place."""
    case = Case(MaskSpec(contextual_len=2), lengths=[9, 17, 40], targets=[2, 6, 3], biased=True)
    out = case.run(hstu_attention_reference)["out"]
    for row in range(3):
        start, stop = int(case.offsets[row]), int(case.offsets[row + 1])
        alone = hstu_attention_reference(
            case.q[start:stop],
            case.k[start:stop],
            case.v[start:stop],
            torch.tensor([0, stop - start]),
            alpha=case.alpha,
            divisor=case.divisor,
            mask=case.spec,
            num_targets=case.targets[row : row + 1],
            timestamps=case.times[start:stop],
            **case.tables,
        )
        assert torch.equal(alone, out[start:stop]), f"row {row} depends on its neighbours"


@pytest.mark.parametrize(
    ("lengths", "targets"),
    [
        ([0], [0]),
        ([0, 0, 0], [0, 0, 0]),
        ([1], [0]),
        ([1, 0, 1], [1, 0, 0]),
        ([4, 0, 9], [4, 0, 9]),
    ],
    ids=["empty", "all empty", "one token", "ones", "all targets"],
)
def test_degenerate_rows(lengths: list[int], targets: list[int], tiling: None) -> None:
    case = Case(MaskSpec(), lengths=lengths, targets=targets, dtype=torch.float64)
    case.targets = case.targets.to(torch.int64)
    case.offsets = case.offsets.to(torch.int64)
    compare(case.run(fast), case.run(hstu_attention_reference), 1e-13)


def test_no_rows_at_all() -> None:
    case = Case(MaskSpec(), lengths=[], targets=[], biased=True)
    case.offsets, case.targets = torch.zeros(1, dtype=torch.int64), torch.zeros(0).long()
    got = case.run(fast)
    assert got["out"].shape == case.v.shape and not got["grad_time"].any()


def test_nan_neighbours_do_not_leak(tiling: None) -> None:
    case = Case(MaskSpec(), lengths=[4, 0, 6, 9], targets=[1, 0, 2, 3])
    want = case.run(fast)
    with torch.no_grad():
        for x in (case.q, case.k, case.v, case.weights):
            x[:4], x[10:] = torch.nan, torch.nan
    got = case.run(fast)
    for name in NAMES[:4]:
        torch.testing.assert_close(got[name][4:10], want[name][4:10], rtol=0, atol=1e-6)


def test_a_candidate_with_nan_spoils_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_rows, "TOGETHER", 2)  # blocked: candidates never meet each other
    case = Case(MaskSpec(), lengths=[9], targets=[3])
    with torch.no_grad():
        case.k[7] = torch.nan
    out = case.run(fast)["out"]
    assert out[7].isnan().all() and not out[[0, 5, 6, 8]].isnan().any()


def test_strided_views_of_uvqk(tiling: None) -> None:
    case = Case(MaskSpec(), widths=(6, 6))
    stacked = torch.stack([case.v, case.q, case.k], dim=1).detach().flatten(1)
    v, q, k = (part.unflatten(1, (2, 6)) for part in stacked.split(12, dim=1))
    assert not q.is_contiguous()
    want = case.run(fast)
    case.q, case.k, case.v = (x.detach().requires_grad_() for x in (q, k, v))
    case.q.data, case.k.data, case.v.data = q, k, v
    assert not case.q.is_contiguous()
    compare(case.run(fast), want, 1e-6)


class Largest(TorchDispatchMode):
    """The most numbers that any operator returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numel = max(self.numel, out.numel())
        return out


def test_memory_is_linear_in_tokens() -> None:
    heads, length = 2, 3000
    case = Case(MaskSpec(), lengths=[length], targets=[5], widths=(4, 4), heads=heads)
    call = Call(case.spec, length, 0.5, 9.0, 0.301, case.targets, None, None, None)
    q, k, v = (x.detach() for x in (case.q, case.k, case.v))
    with Largest() as seen:
        out = cpu.forward(q, k, v, case.offsets, call)
        cpu.backward(torch.ones_like(out), q, k, v, case.offsets, call)
    assert seen.numel <= heads * cpu_rows.BLOCK * cpu_rows.KEYS < heads * length * length


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_comparison_catches(mutant: str) -> None:
    """A comparison that passes these would prove nothing."""
    case = Case(MaskSpec(), lengths=[33, 12], targets=[0, 4], biased=True)
    want = case.run(hstu_attention_reference)
    compare(case.run(fast), want, 1e-5)
    with pytest.raises(AssertionError, match=r"relative L2|largest error"):
        compare(case.run(lambda *a, **o: MUTANTS[mutant](fast, *a, **o)), want, 1e-5)


def test_the_comparison_catches_each_gradient() -> None:
    case = Case(MaskSpec(), biased=True)
    want = case.run(hstu_attention_reference)
    for name in NAMES:
        wrong = {**want, name: want[name] * (1 + 1e-3)}
        with pytest.raises(AssertionError, match=name):
            compare(wrong, want, 1e-5)


class Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, n: Tensor) -> Tensor:
        return fast(
            q, k, v, offsets, max_len=99, alpha=0.5, divisor=7.0, mask=MaskSpec(), num_targets=n
        )


def test_exports_as_one_node_with_dynamic_rows_and_tokens() -> None:
    def args(lengths: list[int]) -> tuple[Tensor, ...]:
        case = Case(MaskSpec(), lengths=lengths, targets=[min(1, n) for n in lengths])
        return case.q.detach(), case.k.detach(), case.v.detach(), case.offsets, case.targets

    dynamic = {0: torch.export.Dim.DYNAMIC}
    shapes = dict.fromkeys(("q", "k", "v", "offsets", "n"), dynamic)
    exported = torch.export.export(
        Attention(), args([4, 3, 6]), dynamic_shapes=shapes, strict=False
    )
    called = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert [name for name in called if "tzgen" in name] == ["tzgen.hstu_attention.default"]
    for lengths in ([2, 9], [5, 0, 1, 30]):
        other = args(lengths)
        assert torch.equal(exported.module()(*other), Attention()(*other))


def test_is_a_well_formed_library_op() -> None:
    case = Case(MaskSpec(), lengths=[3, 5], targets=[1, 0], biased=True)
    torch.library.opcheck(
        torch.ops.tzgen.hstu_attention.default,
        (
            case.q,
            case.k,
            case.v,
            case.offsets,
            case.targets,
            case.times,
            *case.tables.values(),
            5,
            0.5,
            7.0,
            0.301,
            0,
            0,
            True,
            False,
            False,
            0,
            0,
            0,
            0,
            "CPU_TORCH",
        ),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": "CUTLASS"}, "no kernel 'CUTLASS'; it has AUTO, PYTORCH"),
        ({"divisor": 0.0}, "must be positive"),
        ({"mask": MaskSpec(timestamp_mask=True), "timestamps": None}, "need timestamps"),
        ({"timestamps": torch.zeros(8)}, "must be int64"),
        ({"position_bias": torch.zeros(2, 4)}, "2P - 1"),
        ({"time_bias": torch.zeros(3, 4)}, "1 or H"),
    ],
    ids=["kernel", "divisor", "no times", "float times", "even table", "heads"],
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    case = Case(MaskSpec(), lengths=[3, 5], targets=[1, 1])
    with pytest.raises(ValueError, match=message):
        case.run(fast, **change)
