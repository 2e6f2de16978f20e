# SPDX-License-Identifier: Apache-2.0
"""Choosing among candidates: the k best with a rule for ties, nucleus, Gumbel perturbation.

B rows, n candidates a row, K beams, W candidates a beam. No function asks the device for a value.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32  # the shortest run whose maximum is cheap on a CPU


def top_slots(keys: Tensor, k: int) -> Tensor:
    """Slots of the k largest of float32 [B, n], int64 [B, k] ascending; equal keys: the lower slot.

    -inf is no candidate: its slot is reported as n, after all others. The k largest lie in the k
    blocks with the largest maxima, so only those blocks are looked into. That holds with ties too:
    blocks are runs of slots, and among equal maxima the lower blocks win.
    """
    n = keys.size(1)
    if k >= n:
        slots = torch.arange(n, device=keys.device).expand(keys.size(0), n)
    elif n <= 2 * BLOCK * k:
        slots = exact_top(keys, k)
    else:
        whole = torch.nn.functional.pad(keys, (0, -n % BLOCK), value=-torch.inf)
        blocks = whole.view(keys.size(0), -1, BLOCK)
        best = exact_top(blocks.amax(-1), k)
        inside = blocks.gather(1, best.unsqueeze(2).expand(-1, -1, BLOCK))
        picked = exact_top(inside.view(keys.size(0), -1), k)
        slots = best.gather(1, picked // BLOCK) * BLOCK + picked % BLOCK
    there = keys.gather(1, slots.clamp_max(n - 1)) > -torch.inf
    return torch.where(there, slots, n).sort(-1).values


def exact_top(keys: Tensor, k: int) -> Tensor:
    """The same in one pass: an int64 with the number's bits above and the slot's place below."""
    n = keys.size(1)
    bits = (keys + 0.0).view(torch.int32)  # + 0.0: -0.0 equals 0.0
    rank = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64) << 32
    rank += torch.arange(n - 1, -1, -1, device=keys.device)
    return rank.topk(min(k, n), sorted=False).indices.sort(-1).values


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
