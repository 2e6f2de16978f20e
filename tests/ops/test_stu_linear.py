# SPDX-License-Identifier: Apache-2.0
"""`stu_input` and `stu_output` on a CPU: output and every gradient against float64, by name."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from stu_linear_cases import (
    EPS,
    Case,
    assert_close,
    draw,
    errors,
    input_tensors,
    output_tensors,
    run_input,
    run_output,
)
from torch import Tensor

from tzgen.ops import native
from tzgen.ops.stu_linear import (
    chosen_kernel,
    stu_input,
    stu_input_reference,
    stu_output,
    stu_output_reference,
)
from tzgen.ops.stu_linear import output_op as output_module

SHAPES = [
    Case(0, 8, 2, 3, 5),
    Case(1, 8, 2, 3, 5),
    Case(37, 24, 4, 5, 3),
    Case(130, 48, 2, 32, 16),
    Case(65, 20, 1, 17, 17),
]
VARIANTS = {
    "production": {},
    "paper": {"activated": "vqk", "output_form": "UX"},
    "u in front": {"activated": "u", "activate_u": False},
    "nothing activated": {"activated": "", "activate_u": False, "output_form": "UX"},
    "q and k": {"activated": "qk", "activate_u": True},
    "group norm": {"group_norm": True},
    "group norm, UX": {"group_norm": True, "output_form": "UX"},
}
TIERS = [("CPU_TORCH", torch.float64, 1e-12), ("CPU_TORCH", torch.float32, 2e-5)]
if native.available():
    TIERS.append(("CPU_NATIVE", torch.float32, 2e-5))
tiers = pytest.mark.parametrize(("kernel", "dtype", "bound"), TIERS)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda c: f"L{c.tokens}-W{c.width}")
variants = pytest.mark.parametrize("variant", VARIANTS)


def needs_native() -> None:
    if not native.available():
        pytest.skip("needs a C++ compiler")


@tiers
@shapes
@variants
def test_input_matches_the_reference(
    kernel: str, dtype: torch.dtype, bound: float, shape: Case, variant: str
) -> None:
    case = dataclasses.replace(shape, **VARIANTS[variant])
    want = run_input(case, "REFERENCE", torch.float64)
    for keeps in (True, False):
        got = run_input(case, kernel, dtype, recompute_normed_x=not keeps, recompute_uvqk=not keeps)
        assert_close(got, want, bound)


@tiers
@shapes
@variants
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_output_matches_the_reference(
    kernel: str,
    dtype: torch.dtype,
    bound: float,
    shape: Case,
    variant: str,
    dropout: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(output_module, "CHUNK", 64)
    case = dataclasses.replace(shape, **VARIANTS[variant])
    want = run_output(case, "REFERENCE", torch.float64, dropout=dropout)
    for recompute in (True, False):
        got = run_output(case, kernel, dtype, dropout=dropout, recompute_y=recompute)
        assert_close(got, want, bound)


def test_native_is_as_exact_as_torch() -> None:
    """Design 5: at most 2x (forward) and 5x (backward) the error of PyTorch in the same dtype."""
    needs_native()
    case = Case(130, 48, 2, 32, 16)
    exact = run_output(case, "REFERENCE", torch.float64, dropout=0.3)
    plain = errors(run_output(case, "REFERENCE", torch.float32, dropout=0.3), exact)
    fused = errors(run_output(case, "CPU_NATIVE", torch.float32, dropout=0.3), exact)
    for name in exact:
        times = 2 if name == "out" else 5
        assert fused[name][0] <= times * plain[name][0] + 1e-7, name
        assert fused[name][1] <= times * plain[name][1] + 1e-6, name


@pytest.mark.parametrize(
    "mutant",
    ["a zero output", "norm left out", "u not activated", "dropout left out", "bias left out"],
)
def test_mutants_are_noticed(mutant: str) -> None:
    case = Case(37, 24, 4, 5, 3)
    tensors = output_tensors(case)
    fixed = {
        "output_form": "CONCAT_UOX",
        "activate_u": True,
        "group_norm_heads": None,
        "eps": EPS,
        "dropout": 0.4,
        "seed": 5,
    }
    want = {"out": stu_output_reference(**tensors, **fixed)}
    if mutant == "a zero output":
        got = torch.zeros_like(want["out"])
    elif mutant == "norm left out":
        got = stu_output_reference(**tensors, **(fixed | {"eps": 1e6}))
    elif mutant == "u not activated":
        got = stu_output_reference(**tensors, **(fixed | {"activate_u": False}))
    elif mutant == "dropout left out":
        got = stu_output_reference(**tensors, **(fixed | {"seed": None}))
    else:
        got = stu_output_reference(
            **(tensors | {"norm_bias": torch.zeros_like(tensors["norm_bias"])}), **fixed
        )
    with pytest.raises(AssertionError, match="error"):
        assert_close({"out": got}, want, 1e-3)


def test_strided_inputs() -> None:
    """attended and u as columns of one wide tensor, x as every second row."""
    case = Case(21, 12, 2, 6, 6)
    tensors = output_tensors(case)
    wide = torch.cat([draw(21, 3), tensors["attended"], tensors["u"], draw(21, 2)], 1)
    views = tensors | {
        "attended": wide[:, 3 : 3 + case.width],
        "u": wide[:, 3 + case.width : 3 + 2 * case.width],
        "x": tensors["x"].repeat_interleave(2, 0)[::2],
    }
    fixed = {"output_form": "CONCAT_UOX", "activate_u": True, "eps": EPS}
    want = stu_output_reference(**tensors, group_norm_heads=None, **fixed)
    torch.testing.assert_close(stu_output(**views, **fixed, kernel="CPU_TORCH"), want)
    if native.available():
        half = {name: tensor.float() for name, tensor in views.items()}
        assert not half["attended"].is_contiguous() or half["attended"].stride(0) >= case.width
        got = stu_output(**half, **fixed, kernel="CPU_NATIVE")
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """NaN in other rows stays there, dropout included."""
    case = Case(40, 12, 2, 6, 6)
    tensors = {name: tensor.float() for name, tensor in output_tensors(case).items()}
    fixed = {"activate_u": True, "dropout": 0.3, "training": True}
    torch.manual_seed(1)
    want = stu_output(**tensors, **fixed)
    poisoned = dict(tensors)
    for name in ("attended", "u", "x"):
        poisoned[name] = tensors[name].clone()
        poisoned[name][::3] = torch.nan
    torch.manual_seed(1)
    got = stu_output(**poisoned, **fixed)
    clean = torch.arange(40) % 3 != 0
    assert got[~clean].isnan().all()
    torch.testing.assert_close(got[clean], want[clean], rtol=1e-6, atol=1e-6)


def test_twenty_runs_are_equal_bit_by_bit() -> None:
    case = Case(130, 48, 2, 32, 16)
    first = run_output(case, "AUTO", torch.float32, dropout=0.3)
    for _ in range(20):
        again = run_output(case, "AUTO", torch.float32, dropout=0.3)
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_threads_change_no_bit_of_the_gate() -> None:
    needs_native()
    case, threads = Case(130, 48, 2, 32, 16), torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(run_output(case, "CPU_NATIVE", torch.float32, dropout=0.3))
    torch.set_num_threads(threads)
    for name in ("d_attended", "d_u", "d_norm_weight", "d_norm_bias"):
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-6, atol=1e-6)


def test_mixed_precision_is_that_of_the_modules() -> None:
    """Under autocast: norms in float32, GEMMs in bfloat16, the residual in float32."""
    case = Case(33, 16, 2, 8, 8)
    a = {n: t.float().requires_grad_() for n, t in input_tensors(case).items()}
    b = {n: t.float().requires_grad_() for n, t in output_tensors(case).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        u, v, q, k = stu_input(**a, widths=case.widths, activated="vqk")
        assert u.dtype == q.dtype == torch.bfloat16
        want = stu_input_reference(**a, widths=case.widths, activated="vqk", eps=EPS)
        out = stu_output(b["attended"].bfloat16(), u, *(b[n] for n in list(b)[2:]), activate_u=True)
        assert out.dtype == torch.float32
    for mine, theirs in zip((u, v, q, k), want, strict=True):
        torch.testing.assert_close(mine.float(), theirs.float(), rtol=0.03, atol=0.03)
    out.sum().backward()
    for name in ("x", "weight", "bias", "norm_weight"):
        assert a[name].grad is not None and a[name].grad.dtype == torch.float32


@pytest.mark.parametrize("kept", [True, False])
def test_ops_are_well_formed(kept: bool) -> None:
    case = Case(6, 8, 2, 3, 5, activated="vqk")
    a = [t.float().requires_grad_() for t in input_tensors(case).values()]
    args = (*a, list(case.widths), "vqk", EPS, kept, kept, "CPU_TORCH")
    torch.library.opcheck(torch.ops.tzgen.stu_input.default, args)
    torch.library.opcheck(torch.ops.tzgen.stu_input.default, (*args, "vk"))
    b = [t.float().requires_grad_() for t in output_tensors(case).values()]
    tail = (torch.tensor(3), True, True, 1, EPS, 0.3, kept, "CPU_TORCH")
    torch.library.opcheck(torch.ops.tzgen.stu_output.default, (*b, *tail))


class _Linear(torch.nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        for prefix, tensors in (("a", input_tensors(case)), ("b", output_tensors(case))):
            for name, tensor in tensors.items():
                if name not in ("x", "attended", "u"):
                    self.register_buffer(f"{prefix}_{name}", tensor.float())

    def forward(self, x: Tensor) -> Tensor:
        own = dict(self.named_buffers())
        a = [own[f"a_{name}"] for name in ("norm_weight", "norm_bias", "weight", "bias")]
        b = [own[f"b_{name}"] for name in ("norm_weight", "norm_bias", "weight")]
        u, v, q, k = stu_input(x, *a, widths=self.case.widths, activated="")
        return stu_output(v + q + k, u, x, *b, activate_u=True, dropout=0.5)


def test_export_keeps_one_node_each_with_dynamic_tokens() -> None:
    model = _Linear(Case(9, 8, 2, 4, 4)).eval()
    tokens = torch.export.Dim("tokens")
    exported = torch.export.export(
        model, (torch.randn(9, 8),), dynamic_shapes={"x": {0: tokens}}, strict=False
    )
    targets = [str(n.target) for n in exported.graph.nodes if n.op == "call_function"]
    ours = [t for t in targets if t.startswith("tzgen")]
    assert ours == ["tzgen.stu_input.default", "tzgen.stu_output.default"]
    assert all("getitem" in t or t.startswith(("tzgen", "aten.add")) for t in targets)
    for count in (1, 2, 50):
        x = torch.randn(count, 8)
        torch.testing.assert_close(exported.module()(x), model(x))


def test_kernels_are_chosen_by_device_and_dtype() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    ready = "CPU_NATIVE" if native.available() else "CPU_TORCH"
    assert chosen_kernel("AUTO", cpu, torch.float32) == ready
    assert chosen_kernel("PYTORCH", cpu, torch.float64) == "CPU_TORCH"
    assert chosen_kernel("CPU_TORCH", cpu, torch.float32) == "CPU_TORCH"
    assert chosen_kernel("AUTO", cuda, torch.bfloat16) == "TRITON"
    assert chosen_kernel("PYTORCH", cuda, torch.bfloat16) == "CPU_TORCH"
    assert chosen_kernel("AUTO", cuda, torch.float64) == "CPU_TORCH"
    for name, device, dtype, said in (
        ("CUTLASS", cpu, torch.float32, "no kernel"),
        ("TRITON", cuda, torch.float64, "float64"),
        ("CPU_NATIVE", cuda, torch.float32, "CPU_NATIVE"),
        ("CPU_NATIVE", cpu, torch.float64, "CPU_NATIVE"),
    ):
        with pytest.raises(ValueError, match=said):
            chosen_kernel(name, device, dtype)


def test_bad_arguments_are_refused_by_name() -> None:
    case = Case(4, 8, 2, 3, 5)
    a, b = input_tensors(case), output_tensors(case)
    for change, said in (
        ({"widths": (6, 6, 10)}, "widths"),
        ({"activated": "ux"}, "activated"),
        ({"x": torch.zeros(4, 7)}, "x \\[L, D\\]"),
        ({"norm_weight": torch.zeros(3)}, "norm_weight"),
    ):
        with pytest.raises(ValueError, match=said):
            stu_input(**(a | {"widths": case.widths} | change))
    for change, said in (
        ({"output_form": "XU"}, "output_form"),
        ({"output_form": "UX"}, "UX"),
        ({"u": torch.zeros(4, 5)}, "attended and u"),
        ({"group_norm_heads": 4}, "norm_weight"),
        ({"dropout": 1.0}, "dropout"),
    ):
        with pytest.raises(ValueError, match=said):
            stu_output(**(b | change))


@pytest.mark.parametrize("wanted", ["vk", "u", ""])
def test_what_is_not_wanted_is_not_computed(wanted: str) -> None:
    case = Case(6, 8, 2, 3, 5, activated="uvk")
    a = input_tensors(case)
    options = {"widths": case.widths, "activated": case.activated, "eps": EPS}
    every = stu_input_reference(**a, **options)
    leaves = {name: value.clone().requires_grad_() for name, value in a.items()}
    got = stu_input(**leaves, **options, wanted=wanted)
    for letter, part, want in zip("uvqk", got, every, strict=True):
        assert part.shape == (6, want.size(1) if letter in wanted else 0)
        if letter in wanted:
            torch.testing.assert_close(part, want)
    if wanted:
        plain = {name: value.clone().requires_grad_() for name, value in a.items()}
        parts = zip("uvqk", stu_input_reference(**plain, **options), strict=True)
        torch.cat([part.sin() for letter, part in parts if letter in wanted], 1).sum().backward()
        torch.cat([part.sin() for part in got], 1).sum().backward()
        for name in a:
            torch.testing.assert_close(leaves[name].grad, plain[name].grad)
    with pytest.raises(ValueError, match="subset"):
        stu_input(**a, **options, wanted="x")
