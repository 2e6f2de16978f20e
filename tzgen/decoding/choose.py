# SPDX-License-Identifier: Apache-2.0
"""Choosing among candidates: the k best with a rule for ties, nucleus, Gumbel perturbation.

B rows, n candidates a row, K beams, W candidates a beam. No function asks the device for a value.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_BITS = 5
BLOCK = 1 << BLOCK_BITS  # the shortest run whose maximum is cheap on a CPU
INFINITY = 0x7FF0_0000_0000_0000  # the float64's bits


def top_slots(keys: Tensor, k: int) -> Tensor:
    """Slots of the k largest of float32 [B, n], int64 [B, k] ascending; equal keys: the lower slot.

    Keys are logarithms of probabilities: at most 0. -inf is no candidate: its slot is reported as
    n, after all others. The k largest lie in the k blocks with the largest maxima, so only those
    blocks are looked into. That holds with ties too: blocks are runs of slots, and among equal
    maxima the lower blocks win.
    """
    n = keys.size(1)
    if k >= n:
        slots = torch.arange(n, device=keys.device).expand(keys.size(0), n)
        return torch.where(keys > -torch.inf, slots, n).sort(-1).values
    if n <= 2 * BLOCK * k:
        slots, dead = exact_top(keys, k)
        return slots.masked_fill_(dead, n).sort(-1).values
    short = -n % BLOCK
    whole = torch.nn.functional.pad(keys, (0, short), value=-torch.inf) if short else keys
    blocks = whole.view(keys.size(0), -1, BLOCK)
    best = exact_top(blocks.amax(-1), k)[0].sort(-1).values
    first = torch.arange(keys.size(0), device=keys.device).unsqueeze(1) * blocks.size(1)
    inside = blocks.view(-1, BLOCK).index_select(0, (best + first).flatten())
    picked, dead = exact_top(inside.view(keys.size(0), -1), k)
    slots = (best.gather(1, picked >> BLOCK_BITS) << BLOCK_BITS) + (picked & (BLOCK - 1))
    return slots.masked_fill_(dead, n).sort(-1).values


def exact_top(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same in one pass over [B, n], n < 2^29: slots in no order, and where the key is -inf.

    A float32 as a float64 leaves 29 bits free, where the slot goes; bit patterns of numbers >= 0
    are ordered as the numbers are.
    """
    rank = (0.0 - keys).to(torch.float64).view(torch.int64)  # not -keys: -0.0 equals 0.0
    rank += torch.arange(keys.size(1), device=keys.device)
    best = rank.topk(k, largest=False, sorted=False)
    return best.indices, best.values >= INFINITY


def log_sum_exp(x: Tensor) -> Tensor:
    """[..., W] -> [..., 1]; finite where all are -inf, so that x minus it is -inf and not NaN."""
    peak = x.amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).min)
    return (x - peak).exp_().sum(-1, keepdim=True).log_().clamp_min(-1e30) + peak


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Logits [..., W] with -inf outside the smallest set of likeliest codes that holds top_p.

    The set is of the distribution over the codes that are legal (not -inf); at least one stays.
    """
    shares = (logits - log_sum_exp(logits)).exp()
    shares, order = torch.sort(shares, dim=-1, descending=True, stable=True)
    outside = shares.cumsum(-1) - shares >= top_p
    return logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)


def perturb(log_q: Tensor, parents: Tensor, generator: torch.Generator | None) -> Tensor:
    """Gumbel noise under which the largest child equals its parent (Kool et al. 2019, appendix B).

    log_q: [B, K, W], log-probability of the whole prefix, -inf where illegal; parents: [B, K], the
    perturbed log-probability of the beam. Returns [B, K, W]; its k largest over the last level are
    k leaves drawn without replacement.
    """
    noise = torch.empty_like(log_q).exponential_(generator=generator).log_().neg_()
    free = log_q + noise
    top = free.amax(-1, keepdim=True).clamp_min(torch.finfo(free.dtype).min)
    target = parents.unsqueeze(-1)
    # -log(exp(-target) - exp(-top) + exp(-free)), without cancellation
    shift = target - free + torch.log1p(-torch.exp((free - top).clamp_max(0)))
    moved = target - shift.clamp_min(0) - torch.log1p(torch.exp(-shift.abs()))
    return moved.masked_fill(log_q == -torch.inf, -torch.inf)
