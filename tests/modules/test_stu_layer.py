# SPDX-License-Identifier: Apache-2.0
"""STU options, presets and initial values; the mathematics is compared in test_transducer.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hstu_configs import hstu
from torch import Tensor

from tzgen.config.options import fields_match
from tzgen.config.support import Status, support_of
from tzgen.models.hstu_options import hstu_options
from tzgen.modules.norms import DomainLayerNorm, HeadNorm
from tzgen.modules.stu_layer import STULayer
from tzgen.modules.stu_options import MTGROptions, RelativeBiasOptions, STUOptions
from tzgen.ops.hstu_attention import MaskSpec
from tzgen.protos import module_pb2

NOT_USED = ("sort_by_length",)


def layer(stu: str = "", extra: str = "", contextual_len: int = 2) -> STULayer:
    made = hstu_options(hstu(stu, extra=extra))
    return STULayer(made.stu, max_seq_len=50, contextual_len=contextual_len, mtgr=made.mtgr)


def test_options_are_the_schema() -> None:
    assert fields_match(STUOptions, module_pb2.STU.DESCRIPTOR, NOT_USED) == []
    assert fields_match(RelativeBiasOptions, module_pb2.RelativeBias.DESCRIPTOR) == []
    assert fields_match(MTGROptions, module_pb2.MTGR.DESCRIPTOR) == []


@pytest.mark.parametrize("field", NOT_USED)
def test_fields_that_are_not_used_are_said_to_be(field: str) -> None:
    assert support_of("STU", field).status is not Status.HONOURED


def test_production_preset() -> None:
    made = layer()
    assert (made.activated, made.output_form, made.relative_bias) == ("u", "CONCAT_UOX", None)
    assert made.alpha == pytest.approx(5**-0.5)
    assert made.output.in_features == 3 * 2 * 3 and made.output.bias is None


def test_paper_preset_and_what_overrides_it() -> None:
    made = layer("preset: PAPER")
    assert (made.activated, made.output_form, made.alpha) == ("uvqk", "UX", 1.0)
    assert made.relative_bias is not None
    assert made.relative_bias.position.shape == (2, 2 * 50 - 1)
    assert made.relative_bias.time.shape == (2, 129)
    other = layer('preset: PAPER activated: "u" output_form: CONCAT_UOX attn_alpha: 0.25')
    assert (other.activated, other.output_form, other.alpha) == ("u", "CONCAT_UOX", 0.25)
    without = layer("preset: PAPER relative_bias { use_time: false max_seq_len: 4 }")
    assert without.relative_bias is not None and without.relative_bias.time is None
    assert without.relative_bias.position.shape == (2, 7)


def test_divisor_is_a_constant_of_the_config() -> None:
    assert layer().divisor == 50
    assert layer("scaling_seqlen: 9").divisor == 9


def test_mask_comes_from_the_config() -> None:
    assert layer("max_attn_len: 4").mask == MaskSpec(2, 4)
    assert layer("contextual_seq_len: 0").mask == MaskSpec(0)
    assert layer("sla_k1: 3 sla_k2: 5").mask == MaskSpec(2, sla_k1=3, sla_k2=5)
    assert layer("max_attn_len: 4 full_attn_tail: 2").mask == MaskSpec(2, 4, full_attn_tail=2)
    assert layer("window_keeps_contextual: false append_stable: true").mask == MaskSpec(
        2, window_keeps_contextual=False, append_stable=True
    )
    assert layer(extra="mtgr { realtime_len: 5 }").mask == MaskSpec(
        2, timestamp_mask=True, realtime_len=5
    )
    assert layer(extra="mtgr { timestamp_mask: false }").mask == MaskSpec(2)


def test_norms() -> None:
    assert isinstance(layer("use_group_norm: true").output_norm, HeadNorm)
    mtgr = layer(extra="mtgr {}")
    assert isinstance(mtgr.input_norm, DomainLayerNorm)
    assert isinstance(mtgr.output_norm, DomainLayerNorm)
    with pytest.raises(ValueError, match="use_group_norm"):
        layer("use_group_norm: true", extra="mtgr {}")


def test_initial_values() -> None:
    made = layer()
    bound = (6 / (8 + made.uvqk.out_features)) ** 0.5
    assert 0.8 * bound < made.uvqk.weight.abs().max() <= bound
    assert not made.uvqk.bias.any()


def saved_bytes_and_gradients(
    patch: pytest.MonkeyPatch, recompute: str, dropout: float = 0.3
) -> tuple[int, list[Tensor]]:
    """Bytes that autograd keeps for one layer beside parameters, and every gradient."""
    torch.manual_seed(3)
    made = layer(f"{recompute} preset: PAPER output_form: CONCAT_UOX")
    made.dropout = dropout
    x = torch.randn(9, 8, requires_grad=True)
    owned = {p.untyped_storage().data_ptr() for p in made.parameters()}
    kept: dict[int, int] = {}
    hooks = torch.autograd.graph.saved_tensors_hooks

    def note(packed: object) -> object:
        if isinstance(packed, Tensor) and packed.is_floating_point() and packed.numel():
            storage = packed.untyped_storage()
            if storage.data_ptr() not in owned:
                kept[storage.data_ptr()] = storage.nbytes()
        return packed

    def inner(pack: Callable[[Tensor], object], unpack: Callable[..., Tensor]) -> object:
        return hooks(lambda tensor: note(pack(tensor)), unpack)  # only the innermost hooks run

    patch.setattr(torch.autograd.graph, "saved_tensors_hooks", inner)
    torch.manual_seed(4)
    with hooks(note, lambda tensor: tensor):
        out = made(
            x,
            torch.tensor([0, 5, 9]),
            max_len=5,
            num_targets=torch.tensor([1, 2]),
            timestamps=torch.arange(9),
        )
    gradients = torch.autograd.grad(out.square().sum(), (x, *made.parameters()))
    return sum(kept.values()), list(gradients)


FLAGS = ("recompute_normed_x", "recompute_uvqk", "recompute_y")


@pytest.mark.parametrize("flag", FLAGS)
def test_recomputing_keeps_fewer_bytes_and_changes_no_gradient(
    flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = dict.fromkeys(FLAGS, "false")
    kept, want = saved_bytes_and_gradients(
        monkeypatch, " ".join(f"{n}: {v}" for n, v in off.items())
    )
    off[flag] = "true"
    fewer, got = saved_bytes_and_gradients(
        monkeypatch, " ".join(f"{n}: {v}" for n, v in off.items())
    )
    rows, width, scores = 9 * 4, 2 * 3, 2 * 5
    saved = {
        "recompute_normed_x": rows * 8 + 2 * rows,  # and the statistics
        # u, v, q, k, and v, q, k before their SiLU
        "recompute_uvqk": rows * (2 * width + 2 * scores + width + 2 * scores),
        "recompute_y": rows * 3 * width,
    }[flag]
    assert kept - fewer == saved
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_everything_recomputed_keeps_two_rows_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The input, O, and the statistics of its norm."""
    kept, _ = saved_bytes_and_gradients(monkeypatch, " ".join(f"{name}: true" for name in FLAGS))
    assert kept == 9 * 4 * (8 + 2 * 3 + 2)


def test_uvqk_is_kept_on_a_cpu_unless_asked() -> None:
    made = layer()
    assert (made.recompute_normed_x, made.recompute_uvqk, made.recompute_y) == (True, None, True)
    x = torch.randn(2, 8)
    assert not made._recomputes_uvqk(x)
    assert layer("recompute_uvqk: true")._recomputes_uvqk(x)


def test_dropout_follows_the_seed_and_only_in_training() -> None:
    made = layer()
    made.dropout = 0.5
    x, offsets = torch.randn(9, 8), torch.tensor([0, 5, 9])

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return made(x, offsets, max_len=5)

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    made.eval()
    assert torch.equal(run(1), run(2))


def test_trains_in_bfloat16_under_autocast() -> None:
    made = layer()
    made.dropout = 0.2
    x = torch.randn(9, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = made(x, torch.tensor([0, 5, 9]), max_len=5)
    out.square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name
    assert x.grad is not None and x.grad.isfinite().all() and out.dtype == torch.float32


def test_runs_in_bfloat16_under_autocast() -> None:
    made = layer().eval()
    x, offsets = torch.randn(9, 8), torch.tensor([0, 5, 9])
    targets = torch.tensor([1, 2])
    exact = made(x, offsets, max_len=5, num_targets=targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = made(x, offsets, max_len=5, num_targets=targets)
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)
