# SPDX-License-Identifier: Apache-2.0
"""STU attention in Triton against the reference in float64, by name, for output and gradients.

On a CPU through Triton's interpreter, in small blocks; marked `gpu`, the same cases compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import triton_runs as runs
from attention_cases import NAMES, SPECS, compare
from interpreted import Run, interpreter
from torch import Tensor

from tzgen.ops.hstu_attention import MaskSpec, dense_mask, hstu_attention_reference
from tzgen.ops.hstu_attention.triton_configs import Config, Tuning

BLOCK = 16  # of the interpreter
LENGTHS, TARGETS = [0, 3, BLOCK, 41, BLOCK + 1], [0, 0, 13, 20, 1]


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Run]:
    with interpreter() as run:
        yield run


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(device: str, request: pytest.FixtureRequest) -> Run:
    """`run(function, case, ...)` where the kernels of `device` run."""
    if device == "cpu":
        found: Run = request.getfixturevalue("interpreted")
        return found
    return lambda function, *args, **options: function(*args, **options)


def case_of(device: str, spec: MaskSpec, **options: Any) -> dict[str, Any]:
    """Arguments of `Case`; rows and widths are larger where kernels are compiled."""
    chosen = {"lengths": LENGTHS, "targets": TARGETS, **options}
    if options.get("biased") and "lengths" not in options:
        chosen |= {"lengths": [0, 3, 37], "targets": [0, 0, 18]}
    if device == "cuda" and "lengths" not in options:
        chosen |= {"lengths": [0, 3, 127, 128, 129, 1000], "targets": [0, 0, 100, 3, 1, 300]}
        chosen |= {"widths": (64, 128)} if "widths" not in options else {}
    return {"spec": spec, "device": device, **chosen}


def exact(case: dict[str, Any]) -> dict[str, Tensor]:
    """The reference in float64 on the inputs as rounded to the case's dtype."""
    given = runs.made({**case, "device": "cpu"})
    made = runs.made({**case, "device": "cpu", "dtype": torch.float64})
    for name in ("q", "k", "v"):
        setattr(made, name, getattr(given, name).detach().double().requires_grad_())
    made.weights = given.weights.double()
    made.tables = {
        name: table.detach().double().requires_grad_() for name, table in given.tables.items()
    }
    return made.run(hstu_attention_reference)


def tolerance(device: str) -> float:
    """Of float32; rows are longer on a GPU, and its exp and division are approximate."""
    return 5e-6 if device == "cpu" else 3e-5


def without_empty(got: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in got.items() if value.numel() > 0}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("biased", [False, True], ids=["", "rab"])
def test_matches_float64(spec: MaskSpec, biased: bool, device: str, run: Run) -> None:
    case = case_of(device, spec, biased=biased, heads=1 + (spec == MaskSpec()))
    compare(run(runs.attention, case), exact(case), tolerance(device))


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)],
    ids=str,
)
@pytest.mark.parametrize("biased", [False, True], ids=["", "rab"])
def test_error_is_that_of_the_dtype(
    dtype: torch.dtype, biased: bool, device: str, run: Run
) -> None:
    """At most 2x (forward) or 5x (backward) the error of plain PyTorch in that dtype."""
    if dtype == torch.bfloat16 and device == "cpu":
        pytest.skip("needs a CUDA device: the interpreter gets bfloat16 wrong")
    case = case_of(device, MaskSpec(contextual_len=2), biased=biased, dtype=dtype)
    want, got = exact(case), run(runs.attention, case)
    plain = runs.made({**case, "device": "cpu"}).run(same_dtype)
    for name, truth in want.items():
        ours = (got[name].double() - truth).norm() / truth.norm()
        theirs = (plain[name].double() - truth).norm() / truth.norm()
        assert ours <= theirs * (2 if name == "out" else 5), f"{name}: {ours:.1e} vs {theirs:.1e}"


def same_dtype(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, **options: Any) -> Tensor:
    """Padded dense attention whose every step is rounded to the dtype of q."""
    rows = []
    counts = options["num_targets"].tolist()
    for (start, stop), targets in zip(pairwise(offsets.tolist()), counts, strict=True):
        scores = options["alpha"] * torch.einsum("ihd,jhd->hij", q[start:stop], k[start:stop])
        if "position_bias" in options:
            scores = scores + rounded_bias(stop - start, targets, start, options).to(q.dtype)
        seen = dense_mask(stop - start, targets, options["mask"])
        weights = torch.nn.functional.silu(scores) * seen / options["divisor"]
        rows.append(torch.einsum("hij,jhd->ihd", weights, v[start:stop]))
    return torch.cat(rows)


def rounded_bias(length: int, targets: int, start: int, options: dict[str, Any]) -> Tensor:
    from tzgen.ops.hstu_attention.reference import _row_bias

    return _row_bias(
        length,
        targets,
        options["mask"],
        options["timestamps"][start : start + length],
        options["position_bias"],
        options["time_bias"],
        0.301,
        options["position_bias"].new_zeros(()),
    )


@pytest.mark.parametrize("length", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 1])
@pytest.mark.parametrize("targets", [0, 1, BLOCK])
def test_tile_borders(length: int, targets: int, device: str, run: Run) -> None:
    scale = 1 if device == "cpu" else 8
    lengths, counts = [length * scale, 1], [min(length, targets) * scale, 0]
    case = case_of(device, MaskSpec(), lengths=lengths, targets=counts, heads=1)
    compare(run(runs.attention, case), exact(case), tolerance(device))


@pytest.mark.parametrize("widths", [(1, 1), (16, 16), (5, 24), (33, 8)], ids=str)
def test_widths(widths: tuple[int, int], device: str, run: Run) -> None:
    case = case_of(device, MaskSpec(), widths=widths, lengths=[19], targets=[3])
    compare(run(runs.attention, case), exact(case), tolerance(device))


@pytest.mark.parametrize(
    ("lengths", "targets"),
    [([0], [0]), ([0, 0], [0, 0]), ([1, 0, 1], [1, 0, 0]), ([20, 0, 9], [20, 0, 9])],
    ids=["empty", "all empty", "ones", "all targets"],
)
def test_degenerate_rows(lengths: list[int], targets: list[int], device: str, run: Run) -> None:
    case = case_of(device, MaskSpec(), lengths=lengths, targets=targets, biased=True, heads=1)
    compare(run(runs.attention, case), exact(case), tolerance(device))


def test_no_rows_at_all(device: str, run: Run) -> None:
    case = case_of(device, MaskSpec(), lengths=[], targets=[], biased=True)
    got = run(runs.attention, case)
    assert got["out"].shape == (0, 2, 10) and not got["grad_time"].any()


def test_scores_far_from_zero(device: str, run: Run) -> None:
    """SiLU of scores down to -60 is 0, not the rest of a cancellation, and never NaN."""
    case = case_of(device, MaskSpec(), lengths=[30], targets=[4], widths=(3, 4))
    compare(run(runs.attention, case, alpha=20.0), far(case), tolerance(device))


def far(case: dict[str, Any]) -> dict[str, Tensor]:
    made = runs.made({**case, "device": "cpu", "dtype": torch.float64})
    return made.run(hstu_attention_reference, alpha=20.0)


def test_views_of_uvqk_and_either_order(device: str, run: Run) -> None:
    """Odd row strides, an odd offset, a gradient that is not contiguous: the same bits."""
    spec = MaskSpec(contextual_len=3, max_attn_len=6)
    case = case_of(device, spec, biased=True, lengths=[22, 19], targets=[0, 3])
    plain = run(runs.direct, case, Tuning(listed_order=False))
    views = run(runs.direct, case, Tuning(listed_order=True), runs.uvqk_views)
    for name in NAMES:
        if "position" in name or "time" in name:  # sums over tiles in their order
            torch.testing.assert_close(views[name], plain[name], rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(views[name], plain[name]), name


def test_nan_neighbours_do_not_leak(device: str, run: Run) -> None:
    case = case_of(device, MaskSpec(), lengths=[4, 0, 19, 9], targets=[1, 0, 4, 3], heads=1)
    want = run(runs.direct, case, Tuning())
    got = run(runs.direct, case, Tuning(), runs.poisoned)
    for name in NAMES[:4]:
        assert torch.equal(got[name][4:23], want[name][4:23]), name


def test_a_candidate_with_nan_spoils_only_itself(device: str, run: Run) -> None:
    case = case_of(device, MaskSpec(), lengths=[23], targets=[6], heads=1)
    out = run(runs.direct, case, Tuning(), runs.nan_candidate)["out"]
    assert out[18].isnan().all() and out.isnan().any(-1).sum() == 1


def test_a_row_is_the_same_alone_and_in_a_batch(device: str, run: Run) -> None:
    together = case_of(device, MaskSpec(), lengths=[37, 21, 5], targets=[3, 20, 0], heads=1)
    alone = {**together, "lengths": [37], "targets": [3]}
    both = [run(runs.direct, case, Tuning(), partial(first_tokens, count=37)) for case in
            (together, alone)]  # fmt: skip
    for name in NAMES[:4]:
        assert torch.equal(both[0][name][:37], both[1][name][:37]), name


def first_tokens(*tensors: Tensor, count: int) -> tuple[Tensor, ...]:
    """The first tokens get numbers that do not depend on how many follow."""
    changed = []
    for seed, x in enumerate(tensors):
        make = torch.Generator().manual_seed(seed)
        x = x.clone()
        x[:count] = torch.randn(count, *x.shape[1:], generator=make).to(x)
        changed.append(x)
    return tuple(changed)


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.gpu)])
def test_is_deterministic(times: int, device: str, run: Run) -> None:
    """Bitwise, the tables' gradients included."""
    if times == 20 and device == "cpu":
        times = 2
    spec = MaskSpec(max_attn_len=7, full_attn_tail=2)
    case = case_of(device, spec, biased=True, heads=1)
    first = run(runs.direct, case, Tuning())
    for _ in range(times - 1):
        again = run(runs.direct, case, Tuning())
        for name in NAMES:
            assert torch.equal(again[name], first[name]), name


@pytest.mark.parametrize("mutant", list(runs.MUTANTS))
def test_the_comparison_catches(mutant: str, interpreted: Run) -> None:
    case = case_of("cpu", MaskSpec(), lengths=[33, 12], targets=[7, 4], heads=1)
    want = exact(case)
    compare(without_empty(interpreted(runs.direct, case, Tuning())), want, 5e-6)
    with pytest.raises(AssertionError, match=r"relative L2|largest error"):
        compare(without_empty(interpreted(runs.mutated, case, mutant)), want, 5e-6)


def test_refuses_widths_beyond_the_table(interpreted: Run) -> None:
    case = case_of("cpu", MaskSpec(), lengths=[2], targets=[0], widths=(300, 8))
    with pytest.raises(ValueError, match=r"from 1 to 256; got 300 and 8: use kernel PYTORCH"):
        interpreted(runs.attention, case)


@pytest.mark.gpu
@pytest.mark.parametrize("config", [Config(64, 32, 4, 2), Config(32, 64, 8, 1)], ids=str)
def test_any_config_gives_the_result(config: Config) -> None:
    tuning = Tuning(dict.fromkeys(("forward", "keys", "queries"), config))
    case = case_of("cuda", MaskSpec(contextual_len=2, max_attn_len=70))
    compare(without_empty(runs.direct(case, tuning)), exact(case), tolerance("cuda"))
