# SPDX-License-Identifier: Apache-2.0
"""Residual quantization against loops, its gradients by hand, and codebooks that stay alive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from tzgen.modules.kmeans import KMeansOptions
from tzgen.modules.quantizers import (
    DeadCodeOptions,
    EmaOptions,
    GumbelOptions,
    QuantizerOptions,
    ResidualQuantizer,
    SinkhornOptions,
    rotate_to,
    sinkhorn,
)

PLAIN = QuantizerOptions(
    codebook=(7, 5, 6),
    forward_mode="ste",
    rotation_trick=False,
    distance_type="l2",
    normalize_residuals=False,
    sinkhorn=None,
    ema=None,
    dead_codes=None,
    gumbel=GumbelOptions(1.0, 0.1, 10),
)


def vectors(seed: int = 0, n: int = 40, dim: int = 4) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def quantizer(options: QuantizerOptions = PLAIN, dim: int = 4) -> ResidualQuantizer:
    torch.manual_seed(1)
    made = ResidualQuantizer(options, dim)
    with torch.no_grad():
        for book in made.codebooks:
            book.normal_()
    return made


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("normalize", [False, True])
def test_codes_are_those_of_a_loop(distance: str, normalize: bool) -> None:
    options = replace(PLAIN, distance_type=distance, normalize_residuals=normalize)
    made, z = quantizer(options).eval(), vectors()
    found = made(z)
    for n in range(len(z)):
        left, total = z[n], torch.zeros(4)
        for level, book in enumerate(made.codebooks):
            left = F.normalize(left, dim=0) if normalize else left
            if distance == "l2":
                scores = (book - left).square().sum(1)
            else:
                scores = -F.cosine_similarity(book, left[None], dim=1)
            code = int(scores.argmin())
            assert found.codes[n, level] == code
            left, total = left - book[code], total + book[code]
            torch.testing.assert_close(found.cumulative[n, level], total)
        torch.testing.assert_close(found.out[n], total)
    assert torch.equal(made.encode(z), found.codes)
    assert found.gap.tolist() == [0.0] * 3


def test_straight_through_gives_z_the_whole_gradient_and_codebooks_theirs() -> None:
    made, z = quantizer().train(), vectors().requires_grad_()
    found = made(z)
    torch.testing.assert_close(found.out, found.cumulative[:, -1])
    weight = vectors(3)
    (found.out * weight).sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, weight)
    assert all(book.grad is None for book in made.codebooks)
    (found.cumulative[:, -1] - z.detach()).square().sum().backward()
    assert all(book.grad is not None and book.grad.abs().sum() > 0 for book in made.codebooks)


def test_the_rotation_reaches_the_target_and_keeps_angles_of_gradients() -> None:
    """d out / d z is the scaled rotation that takes z to its code."""
    z, target = vectors(1, 6).requires_grad_(), vectors(2, 6)
    out = rotate_to(z, target)
    torch.testing.assert_close(out, target)
    for n in range(6):
        jacobian = torch.autograd.functional.jacobian(
            lambda one, n=n: rotate_to(one[None], target[n : n + 1])[0], z[n].detach()
        )
        scale = target[n].norm() / z[n].norm()
        torch.testing.assert_close(jacobian @ jacobian.t(), torch.eye(4) * scale**2)
        torch.testing.assert_close(jacobian @ z[n], target[n])
        assert torch.linalg.det(jacobian) > 0
    zero = torch.zeros(1, 4, requires_grad=True)
    rotate_to(zero, target[:1]).sum().backward()
    assert zero.grad is not None and torch.equal(zero.grad, torch.ones(1, 4))


def test_sinkhorn_balances_and_a_sharp_one_is_the_nearest_code() -> None:
    distances = torch.cdist(vectors(n=64), vectors(9, n=8)).square()
    distances[:, 0] -= 6.0  # everybody's favourite
    plan = sinkhorn(distances, 10.0, 100)
    torch.testing.assert_close(plan.sum(1), torch.ones(64, dtype=torch.float64))
    torch.testing.assert_close(
        plan.sum(0), torch.full((8,), 8.0, dtype=torch.float64), rtol=0.2, atol=0.5
    )
    assert torch.bincount(distances.argmin(1), minlength=8).max() > 30
    assert torch.bincount(plan.argmax(1), minlength=8).max() < 16
    assert torch.equal(sinkhorn(distances, 50.0, 0).argmax(1), distances.argmin(1))
    assert sinkhorn(distances[:0], 10.0, 3).shape == (0, 8)


def test_sinkhorn_shapes_training_only_and_its_gap_is_told() -> None:
    chosen = SinkhornOptions(iters=20, epsilon=5.0, enabled=True, last_level_only=True)
    made, z = quantizer(replace(PLAIN, sinkhorn=chosen)), vectors() + 3.0
    trained = made.train()(z)
    assert trained.gap[:2].tolist() == [0.0, 0.0]
    nearest = made.eval()(z)
    assert torch.equal(trained.codes[:, :2], nearest.codes[:, :2])
    differ = (trained.codes[:, 2] != nearest.codes[:, 2]).float().mean()
    assert trained.gap[2] == differ > 0


def test_gumbel_trains_everything_and_cools_down() -> None:
    made = quantizer(replace(PLAIN, forward_mode="gumbel_softmax")).train()
    z = vectors().requires_grad_()
    temperatures = []
    for _ in range(12):
        temperatures.append(made.temperature)
        found = made(z)
        made.end_step()
    found.out.square().sum().backward()
    assert z.grad is not None and z.grad.abs().sum() > 0
    assert all(book.grad is not None and book.grad.abs().sum() > 0 for book in made.codebooks)
    assert temperatures[0] == 1.0 and temperatures[-1] == pytest.approx(0.1)
    assert temperatures[5] == pytest.approx(10**-0.5)


def test_ema_codebooks_become_the_means_of_what_chose_them() -> None:
    options = replace(PLAIN, codebook=(3,), ema=EmaOptions(decay=0.5, epsilon=1e-5))
    made = quantizer(options).train()
    assert not any(book.requires_grad for book in made.codebooks)
    centres = torch.tensor([[9.0, 0, 0, 0], [0, 9.0, 0, 0], [0, 0, 9.0, 0]])
    with torch.no_grad():
        made.codebooks[0].copy_(centres * 0.7)
        made.get_buffer("ema_sum_0").copy_(centres * 0.7)
    z = centres.repeat(20, 1) + 0.1 * vectors(n=60)
    for _ in range(30):
        codes = made(z).codes[:, 0]
        made.end_step()
    means = torch.stack([z[codes == code].mean(0) for code in range(3)])
    torch.testing.assert_close(made.codebooks[0].detach(), means, rtol=1e-3, atol=1e-3)


def test_dead_codes_come_back_to_life() -> None:
    restart = DeadCodeOptions(interval=2, threshold=0.2, decay=0.5)
    alive = {}
    for name, dead_codes in (("without", None), ("with", restart)):
        made = quantizer(replace(PLAIN, codebook=(16,), dead_codes=dead_codes)).train()
        with torch.no_grad():
            made.codebooks[0][1:] += 100.0  # all but one are out of reach
        for _ in range(20):
            codes = made(vectors(n=200)).codes
            made.end_step()
        alive[name] = int(codes.unique().numel())
    assert alive["without"] == 1
    assert alive["with"] >= 14


def test_dead_codes_move_onto_different_rows() -> None:
    restart = DeadCodeOptions(interval=1, threshold=0.9, decay=0.0)
    made = quantizer(replace(PLAIN, codebook=(16,), dead_codes=restart)).train()
    with torch.no_grad():
        made.codebooks[0][1:] += 100.0
    made(vectors(n=17))
    made.end_step()
    assert torch.unique(made.codebooks[0].detach(), dim=0).size(0) == 16
    with torch.no_grad():
        made.codebooks[0][1:] += 100.0
    made(vectors(n=5))  # fewer rows than dead codes: the others wait for the next look
    made.end_step()
    assert int((made.codebooks[0].detach().norm(dim=1) < 20).sum()) == 1 + 5


@pytest.mark.parametrize("restarts", [False, True])
def test_micro_batches_are_one_step(restarts: bool) -> None:
    """Running means, shares and schedules move as if a step's rows had come at once."""
    dead_codes = DeadCodeOptions(interval=2, threshold=0.9 if restarts else 0.0, decay=0.5)
    options = replace(PLAIN, ema=EmaOptions(decay=0.5, epsilon=1e-5), dead_codes=dead_codes)
    whole, cut = quantizer(options).train(), quantizer(options).train()
    for step in range(4):
        for made, sizes in ((whole, (40,)), (cut, (11, 0, 29))):
            torch.manual_seed(step)
            for rows in vectors(step).split(sizes):
                made(rows)
            made.end_step()
    assert int(cut.steps) == int(whole.steps) == 4
    for (name, mine), theirs in zip(
        cut.state_dict().items(), whole.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, msg=name)


@pytest.mark.parametrize("last_level_only", [True, False])
def test_a_code_that_inference_never_chooses_is_dead_however_sinkhorn_balances(
    last_level_only: bool,
) -> None:
    balanced = SinkhornOptions(5, 10.0, enabled=True, last_level_only=last_level_only)
    restart = DeadCodeOptions(interval=4, threshold=0.2, decay=0.5)
    options = replace(PLAIN, codebook=(4, 16), sinkhorn=balanced, dead_codes=restart)
    made, z = quantizer(options).train(), vectors(n=200)
    with torch.no_grad():
        made.codebooks[1][1:] += 100.0  # all but one are out of reach
    assert made.encode(z)[:, 1].unique().numel() == 1
    assert made(z).codes[:, 1].unique().numel() > 8, "Sinkhorn uses them all the same"
    for _ in range(8):
        made(z)
        made.end_step()
    assert made.encode(z)[:, 1].unique().numel() >= 14


def test_init_from_rows_uses_every_code() -> None:
    made = quantizer().eval()
    z = vectors(n=300)
    made.init_from(z, KMeansOptions())
    codes = made.encode(z)
    assert [int(codes[:, level].unique().numel()) for level in range(3)] == [7, 5, 6]
    with pytest.raises(ValueError, match="6 points for 7 centroids"):
        made.init_from(z[:6], KMeansOptions())


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_autocast_changes_no_code(distance: str) -> None:
    options = replace(PLAIN, codebook=(64, 64), distance_type=distance)
    made, z = quantizer(options, dim=16).eval(), vectors(n=500, dim=16) + 3.0
    alone = made(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(made(z).codes, alone.codes)
        assert torch.equal(made.encode(z), alone.codes)
        assert made.train()(z.bfloat16()).out.isfinite().all()


def test_candidates_are_the_nearest_codes_of_the_last_level() -> None:
    made, z = quantizer().eval(), vectors()
    codes, distances = made.candidates(z, 4)
    best = made(z)
    assert torch.equal(codes[:, 0], best.codes)
    assert torch.equal(codes[:, :, :2], best.codes[:, None, :2].expand(-1, 4, -1))
    left = z - best.cumulative[:, 1]
    expected = torch.cdist(left, made.codebooks[2]).square().topk(4, largest=False)
    assert torch.equal(codes[:, :, 2], expected.indices)
    torch.testing.assert_close(distances, expected.values, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="7 candidates of a last level of 6"):
        made.candidates(z, 7)


RANKED = replace(
    PLAIN,
    sinkhorn=SinkhornOptions(iters=5, epsilon=10.0, enabled=True, last_level_only=False),
    ema=EmaOptions(decay=0.9, epsilon=1e-5),
)
RESTARTED = replace(RANKED, dead_codes=DeadCodeOptions(interval=2, threshold=0.9, decay=0.5))
CUTS = (20, 5, 40, 13)  # rows of rank 0; of the third step it has all, and rank 1 none


def _trained(options: QuantizerOptions, rank: int | None) -> list[Tensor]:
    """Codebooks and usage after four steps on this rank's rows, or on all of them."""
    made = quantizer(options).train()
    torch.manual_seed(10 if rank is None else 10 + rank)  # ranks draw different numbers
    for step, cut in enumerate(CUTS):
        z = vectors(20 + step)
        made(z if rank is None else (z[:cut], z[cut:])[rank])
        made.end_step()
    usage = [made.get_buffer(f"usage_{level}") for level in range(made.levels)]
    return [*(book.detach() for book in made.codebooks), *usage]


def _rank(rank: int, store: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save([_trained(o, rank) for o in (RANKED, RESTARTED)], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_move_the_same_codebooks_as_one(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for mine, theirs in zip(one, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    for mine, alone in zip(one[0], _trained(RANKED, None), strict=True):
        torch.testing.assert_close(mine, alone)
    assert not torch.equal(one[0][0], one[1][0]), "dead codes were restarted"


def test_nonsense_is_refused() -> None:
    for change, text in (
        ({"codebook": ()}, "codebook"),
        ({"forward_mode": "soft"}, "forward_mode 'soft'"),
        ({"distance_type": "dot"}, "distance_type 'dot'"),
        ({"forward_mode": "gumbel_softmax", "rotation_trick": True}, "gumbel_softmax"),
    ):
        with pytest.raises(ValueError, match=text):
            ResidualQuantizer(replace(PLAIN, **change), 4)  # type: ignore[arg-type]
