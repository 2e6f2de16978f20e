# SPDX-License-Identifier: Apache-2.0
"""Losses as pure functions: one value for each sample (or list), never reduced.

N samples, C classes, G groups (sessions, or the candidates of a row). Logits are float32, an empty
batch gives an empty loss that is still connected to them. Formulas as in TorchEasyRec's loss/.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LOG_SCALE = 4.605170186  # ln 100: a trained temperature stays above 0.01 (CLIP)


def binary_cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """-[y log p + (1 - y) log(1 - p)], p = sigmoid(logit), y = label (1 - s) + s / 2.

    logits [N], labels [N] in [0, 1] -> [N].

    >>> loss = binary_cross_entropy(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]))
    >>> [round(x, 4) for x in loss.tolist()]  # ln 2 both
    [0.6931, 0.6931]
    >>> y = torch.tensor([1.0])  # p = 3/4: -(0.9 ln 0.75 + 0.1 ln 0.25)
    >>> round(binary_cross_entropy(torch.tensor([3.0]).log(), y, label_smoothing=0.2).item(), 4)
    0.3975
    """
    labels = labels.to(logits.dtype)
    if label_smoothing:
        labels = labels * (1.0 - label_smoothing) + 0.5 * label_smoothing
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def binary_focal_loss(
    logits: Tensor, labels: Tensor, *, gamma: float = 2.0, alpha: float = 0.5
) -> Tensor:
    """w * cross-entropy, w = alpha y (1 - p)^gamma + (1 - alpha)(1 - y) p^gamma without gradient.

    logits [N], labels [N] in [0, 1] -> [N]. Source: Lin et al. 2017, the weight detached.

    >>> logits, labels = torch.tensor([3.0, 3.0]).log(), torch.tensor([1.0, 0.0])  # p = 3/4
    >>> loss = binary_focal_loss(logits, labels, gamma=1.0, alpha=0.25)
    >>> [round(x, 4) for x in loss.tolist()]  # 0.25 * 0.25 * -ln 0.75, 0.75 * 0.75 * -ln 0.25
    [0.018, 0.7798]
    """
    labels = labels.to(logits.dtype)
    p = torch.sigmoid(logits.detach())
    weight = alpha * labels * (1 - p) ** gamma + (1 - alpha) * (1 - labels) * p**gamma
    return weight * binary_cross_entropy(logits, labels)


def softmax_cross_entropy(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """-sum_c q_c log softmax(logits)_c, q = (1 - s) one-hot + s / C.

    logits [N, C], labels int64 [N] -> [N].

    >>> logits = torch.tensor([[1.0, 2.0, 1.0]]).log()  # p = 1/4, 1/2, 1/4
    >>> round(softmax_cross_entropy(logits, torch.tensor([1])).item(), 4)  # ln 2
    0.6931
    >>> round(softmax_cross_entropy(logits, torch.tensor([1]), label_smoothing=0.3).item(), 4)
    0.8318
    """
    return F.cross_entropy(logits, labels.long(), reduction="none", label_smoothing=label_smoothing)


def l2_loss(predictions: Tensor, labels: Tensor) -> Tensor:
    """(prediction - label)^2; [N], [N] -> [N].

    >>> l2_loss(torch.tensor([1.0, 3.0]), torch.tensor([1.5, 1.0])).tolist()
    [0.25, 4.0]
    """
    return (predictions - labels.to(predictions.dtype)) ** 2


def jrc_loss(
    logits: Tensor, labels: Tensor, groups: Tensor, num_groups: int, *, alpha: float = 0.5
) -> Tensor:
    """alpha * cross-entropy + (1 - alpha) * contrast inside the session.

    A positive is set against its session's negatives on logit 1, a negative against the session's
    positives on logit 0: -log(e^own / (e^own + sum over the others)). Without opponents there is
    no contrast. logits [N, 2], labels [N] (positive above 0), groups int64 [N] below `num_groups`
    -> [N]. Source: Sheng et al. 2022 (2208.06164), equations 5 to 7.

    >>> logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    >>> jrc_loss(logits, torch.tensor([1, 0]), torch.tensor([0, 0]), 1, alpha=0.0).tolist()
    [0.6931471824645996, 0.6931471824645996]
    >>> jrc_loss(logits, torch.tensor([1, 0]), torch.tensor([0, 1]), 2, alpha=0.0).tolist()
    [0.0, 0.0]
    """
    positive = labels > 0
    own = torch.where(positive, logits[:, 1], logits[:, 0])
    against_positive = _logsumexp(logits[:, 1], ~positive, groups, num_groups)
    against_negative = _logsumexp(logits[:, 0], positive, groups, num_groups)
    opponents = torch.where(positive, against_positive[groups], against_negative[groups])
    contrast = F.softplus(opponents - own)
    calibration = softmax_cross_entropy(logits, positive)
    return alpha * calibration + (1 - alpha) * contrast


def listwise_rank_loss(
    logits: Tensor, labels: Tensor, groups: Tensor, num_groups: int, *, log_scale: Tensor
) -> Tensor:
    """Minus the mean log-probability of a list's positives under a softmax over the list: [G].

    logits [N] are multiplied by exp(log_scale), the inverse temperature. Lists without a positive
    or without a negative give 0. labels [N] (positive above 0), groups int64 [N].

    >>> logits = torch.tensor([2.0, 1.0, 1.0, 5.0]).log()  # list 0: 1/2, 1/4, 1/4; list 1: alone
    >>> labels, groups = torch.tensor([1, 1, 0, 1]), torch.tensor([0, 0, 0, 1])
    >>> loss = listwise_rank_loss(logits, labels, groups, 2, log_scale=torch.tensor(0.0))
    >>> [round(x, 4) for x in loss.tolist()]  # (ln 2 + ln 4) / 2
    [1.0397, 0.0]
    """
    scaled = logits * log_scale.clamp(max=MAX_LOG_SCALE).exp()
    everyone = torch.ones_like(scaled, dtype=torch.bool)
    log_probs = scaled - _logsumexp(scaled, everyone, groups, num_groups)[groups]
    positive = (labels > 0).to(scaled.dtype)
    zeros = scaled.new_zeros(num_groups)
    sizes = zeros.index_add(0, groups, torch.ones_like(scaled))
    positives = zeros.index_add(0, groups, positive)
    total = zeros.index_add(0, groups, log_probs * positive)
    trains = (positives > 0) & (positives < sizes)
    return torch.where(trains, -total / positives.clamp(min=1), zeros)


def _logsumexp(x: Tensor, taken: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """log of the sum of e^x over the `taken` members of each group, [G]; -1e9 for none."""
    lowest = x.new_full((num_groups,), -1e9)
    with torch.no_grad():
        top = lowest.scatter_reduce(0, groups, x.masked_fill(~taken, -1e9), "amax")
    zeros = torch.zeros_like(x)
    terms = torch.where(taken, torch.exp(torch.where(taken, x - top[groups], zeros)), zeros)
    total = x.new_zeros(num_groups).index_add(0, groups, terms)
    found = total > 0
    # inner where: log(0) would send NaN gradients through the branch that is not taken
    return torch.where(found, torch.log(torch.where(found, total, 1.0)) + top, lowest)
