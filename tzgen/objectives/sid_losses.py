# SPDX-License-Identifier: Apache-2.0
"""Losses of semantic-ID tokenizers, one number a row, from what the model leaves in its outputs.

N rows, D width of the input, d of the code space, S levels. Distances are means over the width, as
TorchEasyRec's. Sources: Rajput et al. 2023 (TIGER); Zhu et al. 2024 (CoST); Wang et al. 2024
(LETTER); the pair contrast is TorchEasyRec's, after Radford et al. 2021 (CLIP).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tzgen.errors import UserError

LARGEST_SCALE = 100.0


def distance(a: Tensor, b: Tensor, kind: str) -> Tensor:
    """[..., D] x 2 -> [...]: "l2" mean square, "l1" mean absolute, "cos" one minus cosine.

    >>> distance(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]), "l2")
    tensor([2.])
    """
    if kind == "l2":
        return (a - b).square().mean(-1)
    if kind == "l1":
        return (a - b).abs().mean(-1)
    if kind == "cos":
        return 1.0 - F.cosine_similarity(a, b, dim=-1)
    raise UserError(f"distance {kind!r} of a semantic-ID loss: expected 'l2', 'l1' or 'cos'")


def commitment_loss(
    encoded: Tensor, cumulative: Tensor, *, to_code: float, to_encoder: float, kind: str
) -> Tensor:
    """encoded [N, d], cumulative [N, S, d] -> [N]: to_code * |z - sg(q_s)| + to_encoder *
    |sg(z) - q_s|, mean over levels."""
    z = encoded.unsqueeze(1).expand_as(cumulative)
    there = distance(z, cumulative.detach(), kind)
    back = distance(z.detach(), cumulative, kind)
    return (to_code * there + to_encoder * back).mean(1)


def contrastive_recon_loss(
    decoded: Tensor, inputs: Tensor, all_inputs: Tensor, first: int, *, temperature: float
) -> Tensor:
    """CoST: decoded and inputs [N, D]; all_inputs [M, D] of all ranks, this rank's from `first`
    on -> [N]: -log softmax of the cosine with the own input."""
    scores = F.normalize(decoded, dim=1) @ F.normalize(all_inputs, dim=1).t() / temperature
    own = torch.arange(inputs.size(0), device=inputs.device) + first
    return F.cross_entropy(scores, own, reduction="none")


def collaborative_loss(
    quantized: Tensor, all_vectors: Tensor, first: int, *, temperature: float
) -> Tensor:
    """LETTER: quantized [N, d], collaborative vectors [M, d] of all ranks -> [N]. Its gradient goes
    straight through the choice of codes to the encoder, as in the authors' implementation."""
    if quantized.size(1) != all_vectors.size(1):
        raise UserError(
            f"collaborative vectors have {all_vectors.size(1)} numbers and the code space "
            f"{quantized.size(1)} (embed_dim): expected the same"
        )
    own = torch.arange(quantized.size(0), device=quantized.device) + first
    scores = quantized @ all_vectors.t() / temperature
    return F.cross_entropy(scores, own, reduction="none")


def pair_contrast(
    decoded: tuple[Tensor, Tensor],
    everywhere: tuple[Tensor, Tensor, Tensor, Tensor],
    is_pair: Tensor,
    is_pair_everywhere: Tensor,
    first: int,
    scales: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """Three symmetric contrasts of pairs of items, [N]; meaningless where `is_pair` is false.

    decoded: both items of each row, [N, D]; everywhere: the decoded (normalised) and original
    vectors of both items, of all ranks, [M, D]. Against: the other's decoding, the other's
    original, the own original. Rows that are no pairs are nobody's negatives. scales: inverse
    temperatures.
    """
    a, b = (F.normalize(x, dim=1) for x in decoded)
    all_a, all_b, all_a_original, all_b_original = everywhere
    rows = torch.arange(a.size(0), device=a.device) + first
    own = torch.where(is_pair, rows, is_pair_everywhere.to(torch.int64).argmax())
    closed = ~is_pair_everywhere.unsqueeze(0)
    total = a.new_zeros(a.size(0))
    targets = ((all_b, all_a), (all_b_original, all_a_original), (all_a_original, all_b_original))
    for scale, (for_a, for_b) in zip(scales, targets, strict=True):
        for anchor, target in ((a, for_a), (b, for_b)):
            scores = scale * anchor @ target.t()
            scores = scores.masked_fill(closed, torch.finfo(scores.dtype).min)
            total = total + F.cross_entropy(scores, own, reduction="none")
    return total / 6.0
