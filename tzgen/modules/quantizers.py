# SPDX-License-Identifier: Apache-2.0
"""Residual quantization: a vector becomes one code a level, each level on what is left over.

N vectors, d dimensions, S levels, K_s codes of level s. With z the vector, e_s the chosen codes:

    r_0 = z,  c_s = choice(r_s),  r_{s+1} = r_s - e_s[c_s],  z_q = sum_s e_s[c_s]
    out = z + sg(z_q - z)                                    straight-through, or the rotation trick
    loss (objectives): w1 |z - sg(q_s)|^2 + w2 |sg(z) - q_s|^2 over q_s = e_0 + ... + e_s

The choice in training is the nearest code, or Sinkhorn's balanced one, or a Gumbel softmax; in
inference always the nearest. A code is dead when inference would not choose it: Sinkhorn gives
every code its share of a batch, so that what training chooses cannot tell.

Codebooks move, dead codes restart and schedules go on once an optimizer step, in `end_step`, by all
rows that were seen since the last one: of both items of pairs, and of every micro-batch.

Sources: Lee et al. 2022 (RQ-VAE); Rajput et al. 2023 (TIGER); Fifty et al. 2024, arXiv 2410.06424
(rotation trick); Jang et al. 2017 (Gumbel softmax); Zheng et al. 2024 (LC-Rec, Sinkhorn); van den
Oord et al. 2017, appendix A.1 (EMA codebooks).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzgen.modules.collectives import from_first_rank, gather_rows, sum_over_ranks
from tzgen.modules.kmeans import KMeansOptions, residual_kmeans, without_autocast

RESTART_ROWS = 1024  # rows of a rank that dead codes are drawn from


@dataclass(frozen=True)
class SinkhornOptions:
    """The proto SinkhornConfig."""

    iters: int
    epsilon: float
    enabled: bool
    last_level_only: bool


@dataclass(frozen=True)
class EmaOptions:
    """The proto EmaCodebook: codebooks as running means of what chose them, without gradients."""

    decay: float
    epsilon: float


@dataclass(frozen=True)
class DeadCodeOptions:
    """The proto DeadCodeRestart: every `interval` optimizer steps, codes whose running share of the
    choices of inference is below `threshold` times the even share move onto random residuals."""

    interval: int
    threshold: float
    decay: float


@dataclass(frozen=True)
class GumbelOptions:
    """The proto GumbelTemperature: exponential from `start` to `end` over `steps` steps."""

    start: float
    end: float
    steps: int


@dataclass(frozen=True)
class QuantizerOptions:
    """What a residual quantizer is made of; `codebook` is K_0 ... K_{S-1}."""

    codebook: tuple[int, ...]
    forward_mode: str
    rotation_trick: bool
    distance_type: str
    normalize_residuals: bool
    sinkhorn: SinkhornOptions | None
    ema: EmaOptions | None
    dead_codes: DeadCodeOptions | None
    gumbel: GumbelOptions


@dataclass(frozen=True)
class Quantized:
    """codes int64 [N, S]; cumulative [N, S, d]: q_s, differentiable in the codebooks; out [N, d]:
    what the decoder reads; gap [S]: share of choices that were not the nearest code."""

    codes: Tensor
    cumulative: Tensor
    out: Tensor
    gap: Tensor


class ResidualQuantizer(nn.Module):
    """Codebooks `codebooks.<s>` [K_s, d]: parameters, or buffers where EMA moves them."""

    def __init__(self, options: QuantizerOptions, dim: int) -> None:
        super().__init__()
        _check(options)
        self.options = options
        books = [
            torch.empty(size, dim).uniform_(-1.0 / size, 1.0 / size) for size in options.codebook
        ]
        self.codebooks = nn.ParameterList(
            nn.Parameter(book, requires_grad=options.ema is None) for book in books
        )
        self._seen: dict[str, Tensor] = {}  # since the last step
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        for level, size in enumerate(options.codebook):
            self.register_buffer(f"usage_{level}", torch.full((size,), 1.0 / size))
            if options.ema is not None:
                self.register_buffer(f"ema_count_{level}", torch.ones(size))
                self.register_buffer(f"ema_sum_{level}", books[level].clone())

    @property
    def levels(self) -> int:
        return len(self.options.codebook)

    def forward(self, z: Tensor) -> Quantized:
        """z [N, d]. In training it also takes note of what `end_step` needs."""
        residual, total = z, torch.zeros_like(z)
        codes, cumulative, gaps = [], [], []
        for level in range(self.levels):
            points = self._points(residual)
            code, vector, gap = self._level(level, points)
            residual = points - vector.detach()
            total = total + vector
            codes.append(code)
            cumulative.append(total)
            gaps.append(gap)
        if self.training and self.options.dead_codes is not None:
            self._note_use(z)
        return Quantized(
            torch.stack(codes, 1),
            torch.stack(cumulative, 1),
            self._pass(z, total),
            torch.stack(gaps),
        )

    @torch.no_grad()
    def end_step(self) -> None:
        """After every optimizer step, on all ranks: moves EMA codebooks, restarts dead codes, and
        takes the schedules one step on."""
        self.get_buffer("steps").add_(1)
        for level in range(self.levels):
            self._move(level)
            self._restart(level)
        self._seen.clear()

    def encode(self, z: Tensor) -> Tensor:
        """The nearest codes, int64 [N, S]: what is published."""
        return torch.stack(self._path(z)[0], 1)

    def candidates(self, z: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Alternatives of the last level: codes int64 [N, count, S] that share the levels before,
        nearest first, and their squared (or cosine) distances [N, count]."""
        if count > self.options.codebook[-1]:
            raise ValueError(f"{count} candidates of a last level of {self.options.codebook[-1]}")
        codes, _, scores = self._path(z)
        best = scores.topk(count, dim=1, largest=False)
        head = torch.stack(codes, 1)[:, None, :-1].expand(-1, count, -1)
        return torch.cat([head, best.indices.unsqueeze(-1)], dim=2), best.values

    def _path(self, z: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """What inference does: of each level the codes [N] and the points [N, d] that they are
        nearest to; the distances [N, K] of the last level."""
        residual, codes, met = z, [], []
        scores = torch.empty(0)
        for book in self.codebooks:
            points = self._points(residual)
            scores = self._distances(points, book)
            code = scores.argmin(1)
            codes.append(code)
            met.append(points)
            residual = points - book.index_select(0, code)
        return codes, met, scores

    def _points(self, residual: Tensor) -> Tensor:
        """What a level quantizes of what the levels before left over."""
        return F.normalize(residual, dim=1) if self.options.normalize_residuals else residual

    @torch.no_grad()
    def init_from(self, z: Tensor, options: KMeansOptions) -> None:
        """Fit the codebooks to the rows z [N, d] of all ranks by residual k-means."""
        fits, _ = residual_kmeans(
            z,
            self.options.codebook,
            options,
            normalize_residuals=self.options.normalize_residuals,
        )
        for level, fit in enumerate(fits):
            self.codebooks[level].copy_(fit.centroids)
            if self.options.ema is not None:
                self.get_buffer(f"ema_count_{level}").fill_(1.0)
                self.get_buffer(f"ema_sum_{level}").copy_(fit.centroids)

    def _level(self, level: int, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(code [N], vector [N, d], gap) of one level."""
        book, options = self.codebooks[level], self.options
        distances = self._distances(points, book)
        closest = distances.argmin(1)
        if not self.training:
            return closest, book.index_select(0, closest), distances.new_zeros(())
        if options.forward_mode == "gumbel_softmax":
            share = F.gumbel_softmax(-distances, tau=self.temperature, dim=1)
            code, vector = share.argmax(1), share @ book
        else:
            code = self._balanced(level, distances, closest)
            vector = book.index_select(0, code)
        if options.ema is not None:
            self._note_move(level, points, code)
        return code, vector, (code != closest).to(distances.dtype).mean()

    def _distances(self, points: Tensor, book: Tensor) -> Tensor:
        """[N, K]: squared euclidean, or one minus cosine, in the codebook's precision."""
        with without_autocast(points):
            points = points.to(book.dtype)
            if self.options.distance_type == "cosine":
                return 1.0 - F.normalize(points, dim=1) @ F.normalize(book, dim=1).t()
            squares = points.square().sum(1, keepdim=True) + book.square().sum(1)
            return torch.addmm(squares, points, book.t(), alpha=-2.0)

    def _balanced(self, level: int, distances: Tensor, closest: Tensor) -> Tensor:
        chosen = self.options.sinkhorn
        if chosen is None or not chosen.enabled:
            return closest
        if chosen.last_level_only and level + 1 < self.levels:
            return closest
        return sinkhorn(distances.detach(), chosen.epsilon, chosen.iters).argmax(1)

    @property
    def temperature(self) -> float:
        """Of the Gumbel softmax at the present step."""
        gumbel = self.options.gumbel
        done = min(float(self.get_buffer("steps")) / max(gumbel.steps, 1), 1.0)
        return float(gumbel.start * (gumbel.end / gumbel.start) ** done)

    def _pass(self, z: Tensor, total: Tensor) -> Tensor:
        """What the decoder reads, with the gradient that z gets."""
        if not self.training or self.options.forward_mode == "gumbel_softmax":
            return total
        if self.options.rotation_trick:
            return rotate_to(z, total.detach())
        return z + (total - z).detach()

    @torch.no_grad()
    def _note_move(self, level: int, points: Tensor, code: Tensor) -> None:
        """EMA: how many rows chose each code, and their sum."""
        book = self.codebooks[level]
        counts = torch.bincount(code, minlength=book.size(0)).to(book.dtype)
        sums = torch.zeros_like(book).index_add_(0, code, points.to(book.dtype))
        self._add(f"count_{level}", counts)
        self._add(f"sum_{level}", sums)

    def _add(self, name: str, value: Tensor) -> None:
        self._seen[name] = self._seen[name] + value if name in self._seen else value

    @torch.no_grad()
    def _note_use(self, z: Tensor) -> None:
        """Dead codes: what inference would choose of every level, and rows to restart from."""
        codes, met, _ = self._path(z)
        for level, book in enumerate(self.codebooks):
            rows = self._seen.get(f"rows_{level}", book[:0])
            more = met[level][: RESTART_ROWS - rows.size(0)].to(book.dtype)
            self._seen[f"rows_{level}"] = torch.cat([rows, more])
            counts = torch.bincount(codes[level], minlength=book.size(0))
            self._add(f"used_{level}", counts.to(torch.float32))

    def _move(self, level: int) -> None:
        """EMA: codebook = decayed sum / decayed count, counts smoothed by epsilon."""
        if self.options.ema is None:
            return
        decay, epsilon = self.options.ema.decay, self.options.ema.epsilon
        book = self.codebooks[level]
        count, total = self.get_buffer(f"ema_count_{level}"), self.get_buffer(f"ema_sum_{level}")
        for held, name in ((count, f"count_{level}"), (total, f"sum_{level}")):
            seen = self._seen.get(name, torch.zeros_like(held))
            held.mul_(decay).add_(sum_over_ranks(seen), alpha=1.0 - decay)
        size = count.sum()
        smoothed = (count + epsilon) / (size + book.size(0) * epsilon) * size
        book.data.copy_(total / smoothed.unsqueeze(1))

    def _restart(self, level: int) -> None:
        """Count what inference chooses. When it is time, move dead codes onto random residuals of
        all ranks; the same ones on every rank."""
        dead_codes, book = self.options.dead_codes, self.codebooks[level]
        if dead_codes is None:
            return
        usage = self.get_buffer(f"usage_{level}")
        counts = sum_over_ranks(self._seen.get(f"used_{level}", torch.zeros_like(usage)))
        share = counts / counts.sum().clamp(min=1.0)
        usage.mul_(dead_codes.decay).add_(share, alpha=1.0 - dead_codes.decay)
        if int(self.get_buffer("steps")) % dead_codes.interval:
            return
        dead = (usage < dead_codes.threshold / book.size(0)).nonzero().flatten()
        rows = gather_rows(self._seen.get(f"rows_{level}", book.data[:0]))
        if dead.numel() == 0 or rows.size(0) == 0:
            return
        pick = torch.randperm(rows.size(0), device=rows.device)[: dead.numel()]
        dead = dead[: pick.numel()]  # on one row each: of two alike one would stay dead
        chosen = from_first_rank(rows.index_select(0, pick)).to(book.dtype)
        book.data.index_copy_(0, dead, chosen)
        usage.index_fill_(0, dead, 1.0 / book.size(0))
        if self.options.ema is not None:
            self.get_buffer(f"ema_count_{level}").index_fill_(0, dead, 1.0)
            self.get_buffer(f"ema_sum_{level}").index_copy_(0, dead, chosen)


def sinkhorn(distances: Tensor, epsilon: float, iters: int) -> Tensor:
    """A plan [N, K] whose rows sum to one and whose columns nearly weigh the same over all ranks.

    Distances are standardised over all ranks; `epsilon` multiplies them, so that a larger one comes
    closer to the nearest code (TorchEasyRec's convention). Computed in float64.
    """
    scores = distances.to(torch.float64)
    moments = sum_over_ranks(
        torch.stack([scores.sum(), scores.square().sum(), scores.new_tensor(float(scores.numel()))])
    )
    mean = moments[0] / moments[2].clamp(min=1.0)
    deviation = (moments[1] / moments[2].clamp(min=1.0) - mean.square()).clamp(min=1e-12).sqrt()
    log_plan = -epsilon * (scores - mean) / deviation
    plan = (log_plan - log_plan.amax(dim=1, keepdim=True)).exp() if scores.numel() else scores
    for _ in range(iters):
        column = sum_over_ranks(plan.sum(0, keepdim=True)).clamp(min=1e-300)
        plan = plan / column
        plan = plan / plan.sum(1, keepdim=True).clamp(min=1e-300)
    return plan


def rotate_to(z: Tensor, target: Tensor) -> Tensor:
    """`target` as a rotation and scaling of z [N, d] that count as constants in backward.

    The forward value is `target`; the gradient reaches z turned back by the rotation. A zero z or
    target leaves the straight-through gradient.
    """
    z_norm = torch.linalg.vector_norm(z, dim=1, keepdim=True).detach()
    t_norm = torch.linalg.vector_norm(target, dim=1, keepdim=True)
    usable = (z_norm > 1e-6) & (t_norm > 1e-6)
    z_unit = (z / z_norm.clamp(min=1e-6)).detach()
    t_unit = target / t_norm.clamp(min=1e-6)
    half = F.normalize(z_unit + t_unit, dim=1)
    along = (z * half).sum(1, keepdim=True)
    turned = z - 2.0 * along * half + 2.0 * (z * z_unit).sum(1, keepdim=True) * t_unit
    rotated = turned * (t_norm / z_norm.clamp(min=1e-6))
    return torch.where(usable, rotated, z + (target - z).detach())


def _check(options: QuantizerOptions) -> None:
    if not options.codebook or min(options.codebook) < 1:
        raise ValueError(f"codebook {list(options.codebook)}: expected a positive size a level")
    if options.forward_mode not in ("ste", "gumbel_softmax"):
        raise ValueError(f"forward_mode {options.forward_mode!r}; known: 'ste', 'gumbel_softmax'")
    if options.distance_type not in ("l2", "cosine"):
        raise ValueError(f"distance_type {options.distance_type!r}; known: 'l2', 'cosine'")
    if options.forward_mode == "gumbel_softmax" and (options.rotation_trick or options.ema):
        raise ValueError("gumbel_softmax has gradients of its own: no rotation_trick, no ema")
