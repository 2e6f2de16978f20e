# SPDX-License-Identifier: Apache-2.0
"""The C++ attention: the cases of all implementations, its mask pair by pair, bits that stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import MUTANTS, NAMES, SPECS, Case, compare, naive, op
from test_hstu_mask import SPECS as MASKS
from test_hstu_mask import rows, times_of

from tzgen.ops.hstu_attention import MaskSpec, hstu_attention_reference
from tzgen.ops.hstu_attention import bias as rab
from tzgen.ops.hstu_attention import native as kernels
from tzgen.ops.hstu_attention.call import Call
from tzgen.ops.hstu_attention.mask import dense_mask
from tzgen.ops.hstu_attention.native import mask_fields, time_steps
from tzgen.ops.native.build import build

native = op("CPU_NATIVE")
QUERIES, KEYS = 96, 256  # of hstu_task.h


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    made, told = build()
    if made is None:
        assert "no C++ compiler" in told, told
        pytest.skip("needs a C++ compiler")


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("biased", [False, True], ids=["", "rab"])
def test_matches_the_reference(spec: MaskSpec, biased: bool) -> None:
    case = Case(spec, biased=biased, dtype=torch.float64)
    compare(case.run(native), case.run(hstu_attention_reference), 1e-13)


@pytest.mark.parametrize("spec", SPECS)
def test_matches_the_reference_over_several_blocks_and_tiles(spec: MaskSpec) -> None:
    lengths, targets = [QUERIES - 1, 2 * KEYS + 37, QUERIES, 3], [5, 40, 0, 0]
    case = Case(spec, lengths=lengths, targets=targets, widths=(5, 3), biased=True)
    compare(case.run(native), case.in_float64().run(hstu_attention_reference), 1e-5)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 95, 96, 97, 255, 256, 257, 1153, 2311])
def test_matches_the_reference_at_every_border(length: int) -> None:
    targets = [min(length, 20), 1]
    case = Case(MaskSpec(), lengths=[length, 2], targets=targets, widths=(4, 4), biased=True)
    compare(case.run(native), case.in_float64().run(hstu_attention_reference), 1e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_cut_rows_are_whole_rows(spec: MaskSpec) -> None:
    """Rows of several tasks: long ones in production, all of them with chunks of a block here."""
    case = Case(spec, lengths=[400, 97, 1], targets=[30, 97, 0], biased=True, dtype=torch.float64)
    call = Call(
        spec, 400, case.alpha, case.divisor, 0.301, case.targets, case.times, *case.tables.values()
    )
    tensors = [x.detach() for x in (case.q, case.k, case.v)]
    rest = kernels.arguments(case.q, case.offsets, call)
    ops = torch.ops.tzgen_native
    out = ops.hstu_attention_forward(*tensors, *rest, chunk=QUERIES)
    grads = ops.hstu_attention_backward(case.weights, *tensors, *rest, chunk=QUERIES)
    got = dict(zip(NAMES, (out, *grads), strict=True))
    compare(got, case.run(hstu_attention_reference), 1e-13)


@pytest.mark.parametrize(
    "widths", [(1, 1), (8, 16), (16, 33), (32, 32), (48, 24), (65, 128)], ids=str
)
def test_any_widths(widths: tuple[int, int]) -> None:
    case = Case(MaskSpec(contextual_len=1), widths=widths)
    compare(case.run(native), case.run(hstu_attention_reference), 1e-5)


@pytest.mark.parametrize("spec", MASKS, ids=str)
def test_its_mask_is_the_mask(spec: MaskSpec) -> None:
    for length, targets in rows(spec):
        times = torch.tensor(times_of(length), dtype=torch.int64) if spec.timestamp_mask else None
        want = dense_mask(length, targets, spec, times)
        got = torch.ops.tzgen_native.hstu_attention_mask(length, targets, times, mask_fields(spec))
        assert torch.equal(got, want), (length, targets)


@pytest.mark.parametrize(("size", "divisor"), [(20, 0.301), (129, 0.301), (200, 0.05), (1, 1.0)])
def test_buckets_are_those_of_the_definition(size: int, divisor: float) -> None:
    steps, cells = time_steps(size, divisor)
    apart = torch.cat([torch.arange(0, 5000), 2 ** torch.arange(12, 62)])
    apart = torch.cat([apart, apart + 1, (apart - 1).clamp(min=0), (steps[:-1].double()).long()])
    zero = torch.zeros(1, dtype=torch.int64)
    want = rab.time_index(zero, zero, apart, zero, 0, size, divisor)
    floats = apart.abs().clamp(min=1).float()
    found = torch.searchsorted(steps, floats, right=True) - 1
    assert torch.equal(found, want)
    cell = (floats.view(torch.int32) - 0x3F800000) >> 18
    assert bool((cells[cell.long()] <= want).all()), "a cell starts past its bucket"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_that_of_the_dtype(dtype: torch.dtype) -> None:
    """Against float64: at most 2x (forward) or 5x (backward) the error of the naive same dtype."""
    case = Case(MaskSpec(), dtype=dtype)
    want, got, plain = (
        case.in_float64().run(hstu_attention_reference),
        case.run(native),
        case.run(naive),
    )
    for name, truth in want.items():
        ours = (got[name].double() - truth).norm() / truth.norm()
        theirs = (plain[name].double() - truth).norm() / truth.norm()
        assert ours <= theirs * (2 if name == "out" else 5), f"{name}: {ours:.1e} vs {theirs:.1e}"


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_comparison_catches(mutant: str) -> None:
    case = Case(MaskSpec(), lengths=[33, 12], targets=[0, 4], biased=True)
    want = case.run(hstu_attention_reference)
    compare(case.run(native), want, 1e-5)
    with pytest.raises(AssertionError, match=r"relative L2|largest error"):
        compare(case.run(lambda *a, **o: MUTANTS[mutant](native, *a, **o)), want, 1e-5)


def alone(case: Case, row: int) -> Case:
    """A case of one row of `case`, in memory of its own."""
    start, stop = int(case.offsets[row]), int(case.offsets[row + 1])
    one = Case(case.spec, lengths=[stop - start], targets=[int(case.targets[row])])
    one.tables, one.alpha = case.tables, case.alpha
    one.times = case.times[start:stop].clone()
    for name in ("q", "k", "v", "weights"):
        part = getattr(case, name).detach()[start:stop].clone()
        setattr(one, name, part.requires_grad_(name != "weights"))
    return one


@pytest.mark.parametrize(
    "spec", [MaskSpec(2), MaskSpec(sla_k1=40, sla_k2=3)], ids=["causal", "sla"]
)
def test_a_user_never_depends_on_the_batch(spec: MaskSpec) -> None:
    """Bitwise: output and gradients of a row alone and among others."""
    lengths, targets = [9, 333, 0, 40, 1200], [2, 6, 0, 40 - 2, 0]
    case = Case(spec, lengths=lengths, targets=targets, widths=(6, 7), biased=True)
    together = case.run(native)
    for row, length in enumerate(lengths):
        at = slice(int(case.offsets[row]), int(case.offsets[row]) + length)
        by_itself = alone(case, row).run(native)
        for name in NAMES[:4]:
            assert torch.equal(by_itself[name], together[name][at]), f"row {row}: {name}"


def test_twenty_runs_give_the_same_bits() -> None:
    case = Case(MaskSpec(3), lengths=[300, 17, 1300, 5], targets=[9, 3, 0, 1], biased=True)
    first = case.run(native)
    for _ in range(19):
        again = case.run(native)
        for name in NAMES:
            assert torch.equal(again[name], first[name]), name


def test_threads_change_no_bit() -> None:
    case = Case(MaskSpec(3), lengths=[300, 17, 1300, 5], targets=[9, 3, 0, 1], biased=True)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        results.append(case.run(native))
    torch.set_num_threads(threads)
    for name in NAMES:
        assert torch.equal(results[0][name], results[1][name]), name


@pytest.mark.parametrize("spec", SPECS)
def test_nan_neighbours_do_not_leak(spec: MaskSpec) -> None:
    case = Case(spec, lengths=[4, 0, 6, 9], targets=[1, 0, 2, 3])
    case.targets = case.targets.to(torch.int64)
    want = case.run(native)
    with torch.no_grad():
        for x in (case.q, case.k, case.v, case.weights):
            x[:4], x[10:] = torch.nan, torch.nan
    got = case.run(native)
    for name in NAMES[:4]:
        assert torch.equal(got[name][4:10], want[name][4:10]), name


def test_candidates_never_meet() -> None:
    case = Case(MaskSpec(), lengths=[9], targets=[3])
    with torch.no_grad():
        case.k[7], case.v[8] = torch.nan, torch.nan
    out = case.run(native)["out"]
    assert out[[7, 8]].isnan().all() and not out[:7].isnan().any()


def test_strided_views_with_odd_offsets() -> None:
    case = Case(MaskSpec(), widths=(6, 6))
    want = case.run(native)
    total = case.q.size(0)
    stacked = torch.full((total, 3 * 12 + 5), torch.nan)
    for slot, name in enumerate("vqk"):
        at = slice(3 + 12 * slot, 15 + 12 * slot)
        stacked[:, at] = getattr(case, name).detach().flatten(1)
        view = stacked[:, at].unflatten(1, (2, 6))
        setattr(case, name, view.detach().requires_grad_())
        assert not getattr(case, name).is_contiguous()
    backwards = case.weights.transpose(0, 2).contiguous().transpose(0, 2)
    assert not backwards.is_contiguous()
    case.weights = backwards
    got = case.run(native)
    for name in NAMES[:4]:
        assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize(
    ("lengths", "targets"),
    [
        ([0], [0]),
        ([0, 0], [0, 0]),
        ([1], [0]),
        ([1, 0, 1], [1, 0, 0]),
        ([4, 0, 9], [4, 0, 9]),
    ],
    ids=["empty", "all empty", "one token", "ones", "all targets"],
)
@pytest.mark.parametrize("spec", [MaskSpec(), MaskSpec(2, append_stable=True)], ids=["", "short"])
def test_degenerate_rows(lengths: list[int], targets: list[int], spec: MaskSpec) -> None:
    """With two contextual tokens some of these rows are shorter than their prefix."""
    case = Case(spec, lengths=lengths, targets=targets, dtype=torch.float64, biased=True)
    case.targets, case.offsets = case.targets.long(), case.offsets.long()
    compare(case.run(native), case.run(hstu_attention_reference), 1e-13)


def test_no_rows_at_all() -> None:
    case = Case(MaskSpec(), lengths=[], targets=[], biased=True)
    case.offsets, case.targets = torch.zeros(1, dtype=torch.int64), torch.zeros(0).long()
    got = case.run(native)
    assert got["out"].shape == case.v.shape and not got["grad_time"].any()


@pytest.mark.parametrize(
    "change",
    [{"num_targets": [6, 0]}, {"offsets": [0, 5, 3]}, {"offsets": [0, 3, 99]}],
    ids=["targets", "descending", "too long"],
)
def test_refuses_rows_that_do_not_fit(change: dict[str, Any]) -> None:
    case = Case(MaskSpec(), lengths=[3, 5], targets=[1, 1])
    for name, value in change.items():
        setattr(case, {"num_targets": "targets"}.get(name, name), torch.tensor(value))
    with pytest.raises(RuntimeError, match=r"offsets|num_targets"):
        case.run(native, max_len=9)
