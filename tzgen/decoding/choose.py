# SPDX-License-Identifier: Apache-2.0
"""Choosing among candidates: the k best with a rule for ties, nucleus, Gumbel perturbation.

B rows, n candidates a row, K beams, W candidates a beam. No function asks the device for a value.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCKS = (32, 8)  # 32: the shortest whose maxima are cheap on a CPU; then blocks of 8 inside
INFINITY = 0x7FF0_0000_0000_0000  # the float64's bits


def top_slots(keys: Tensor, k: int) -> Tensor:
    """Slots of the k largest of float32 [B, n], int64 [B, k] ascending; equal keys: the lower slot.

    Keys are logarithms of probabilities: at most 0. -inf and NaN are no candidates: their slot is
    reported as n, after all others. The k largest lie in the k blocks with the largest maxima, so
    only those blocks are looked into. That holds with ties too: blocks are runs of slots, and among
    equal maxima the lower blocks win.
    """
    n = keys.size(1)
    if k >= n:
        slots = torch.arange(n, device=keys.device).expand(keys.size(0), n)
        return torch.where(keys > -torch.inf, slots, n).sort(-1).values
    slots = torch.arange(n, device=keys.device)
    for block in BLOCKS:
        if keys.size(1) > 2 * k * block:
            keys, slots = best_blocks(keys, slots, k, block)
    best = ranks(keys, slots).topk(k, largest=False, sorted=False)
    found = slots.expand(keys.shape).gather(1, best.indices)
    return found.masked_fill_(best.values >= INFINITY, n).sort(-1).values


def best_blocks(keys: Tensor, slots: Tensor, k: int, block: int) -> tuple[Tensor, Tensor]:
    """Keys [B, k * block] of the k blocks with the largest maxima, and their slots.

    slots: int64 [n] or [B, n], consecutive within a block.
    """
    short = -keys.size(1) % block
    if short:
        keys, slots = pad(keys, (0, short), value=-torch.inf), pad(slots, (0, short))
    blocks = keys.view(keys.size(0), -1, block)
    best = ranks(blocks.amax(-1), slots[..., ::block]).topk(k, largest=False, sorted=False).indices
    first = torch.arange(keys.size(0), device=keys.device).unsqueeze(1) * blocks.size(1)
    inside = blocks.view(-1, block).index_select(0, (best + first).flatten())
    starts = slots[..., ::block].expand(blocks.shape[:2]).gather(1, best)
    within = starts.unsqueeze(2) + torch.arange(block, device=keys.device)
    return inside.view(keys.size(0), -1), within.view(keys.size(0), -1)


def ranks(keys: Tensor, slots: Tensor) -> Tensor:
    """int64 [B, n], smallest for the largest key and among equals for the lowest slot < 2^29.

    A float32 as a float64 leaves 29 bits free, where the slot goes; bit patterns of numbers >= 0
    are ordered as the numbers are.
    """
    return keys.abs().to(torch.float64).view(torch.int64).add_(slots)  # keys <= 0; NaN comes last


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
