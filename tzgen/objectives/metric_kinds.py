# SPDX-License-Identifier: Apache-2.0
"""The metrics, one class each; `metrics.make_metric` builds them from the config.

N samples, B rows, C classes, T bins. A positive is a label above 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tzgen.objectives.metric_base import F64, I64, Resampler, RowMetric, SumMetric, TaskView
from tzgen.objectives.ranking import (
    SortedScores,
    auc_by_group,
    auc_of_histogram,
    concordance,
    top_of_lists,
)

Columns = Mapping[str, NDArray[np.generic]]


class MeanAbsoluteError(SumMetric):
    """mean |prediction - label|; of a binary task, the prediction is the probability."""

    def contributions(self, view: TaskView) -> Tensor:
        errors = (view.scores.double() - view.label.double()).abs()
        return torch.stack([errors, torch.ones_like(errors)], dim=1)

    def value(self, sums: F64) -> float:
        return _ratio(sums[0], sums[1])


class MeanSquaredError(MeanAbsoluteError):
    """mean (prediction - label)^2."""

    def contributions(self, view: TaskView) -> Tensor:
        errors = (view.scores.double() - view.label.double()) ** 2
        return torch.stack([errors, torch.ones_like(errors)], dim=1)


class Accuracy(SumMetric):
    """Share classified right: probability above `threshold`, or label among the `top_k` classes."""

    def __init__(self, name: str, *, threshold: float, top_k: int) -> None:
        super().__init__(name)
        self.threshold, self.top_k = threshold, top_k

    def contributions(self, view: TaskView) -> Tensor:
        if view.logits.dim() == 2:
            best = view.logits.topk(min(self.top_k, view.logits.size(1)), dim=1).indices
            right = (best == view.label.unsqueeze(1)).any(1)
        else:
            right = (view.scores > self.threshold) == (view.label > 0)
        return torch.stack([right.double(), torch.ones_like(right, dtype=torch.float64)], dim=1)

    def value(self, sums: F64) -> float:
        return _ratio(sums[0], sums[1])


class NormalizedEntropy(SumMetric):
    """Cross-entropy over that of always predicting the mean label, kept inside [eta, 1 - eta].

    Source: He et al. 2014. Taken from logits, so that sure predictions are not cut off.
    """

    def __init__(self, name: str, *, eta: float) -> None:
        super().__init__(name, width=3)
        self.eta = eta

    def contributions(self, view: TaskView) -> Tensor:
        label = view.label.double()
        logits = view.logits.double()
        margin = logits if logits.dim() == 1 else logits[:, 1] - logits[:, 0]
        entropy = F.binary_cross_entropy_with_logits(margin, label, reduction="none")
        return torch.stack([entropy, label, torch.ones_like(label)], dim=1)

    def value(self, sums: F64) -> float:
        entropy, positives, count = sums
        if not count:
            return float("nan")
        mean = min(max(positives / count, self.eta), 1.0 - self.eta)
        base = -(positives * np.log(mean) + (count - positives) * np.log1p(-mean))
        return _ratio(entropy, base)


class RecallAtK(SumMetric):
    """Positives among the first k candidates of their row, over all positives (as TorchEasyRec)."""

    per_row = True

    def __init__(self, name: str, *, top_k: int) -> None:
        super().__init__(name)
        self.top_k = top_k

    def contributions(self, view: TaskView) -> Tensor:
        gains = (view.label > 0).double()
        lists = view.rows, view.samples.num_rows
        hits, positives, _, _ = top_of_lists(view.scores, gains, *lists, self.top_k)
        return torch.stack([hits, positives], dim=1)

    def value(self, sums: F64) -> float:
        return _ratio(sums[0], sums[1])


class NDCGAtK(RecallAtK):
    """Mean over rows with a positive of DCG@k / ideal DCG@k; the label is the gain."""

    def contributions(self, view: TaskView) -> Tensor:
        lists = view.rows, view.samples.num_rows
        _, positives, dcg, ideal = top_of_lists(view.scores, view.label, *lists, self.top_k)
        counts = positives > 0
        share = torch.where(counts, dcg / torch.where(counts, ideal, 1.0), 0.0)
        return torch.stack([share, counts.double()], dim=1)


class GroupedNDCGAtK(RowMetric):
    """NDCGAtK where the samples of one key are the list, wherever they lie in the data."""

    def __init__(self, name: str, *, top_k: int, grouping_key: str) -> None:
        super().__init__(name)
        self.top_k, self.grouping_key = top_k, grouping_key

    def columns(self, view: TaskView) -> dict[str, Tensor]:
        return {"score": view.scores, "label": view.label, "group": _group(view, self)}

    def prepare(self, columns: Columns) -> Callable[[F64 | None], float]:
        keys, groups = np.unique(columns["group"], return_inverse=True)
        score, label = (torch.from_numpy(columns[name]) for name in ("score", "label"))
        lists = torch.from_numpy(groups)
        _, positives, dcg, ideal = top_of_lists(score, label, lists, len(keys), self.top_k)
        counts = (positives > 0).numpy()
        share = (dcg / ideal.clamp(min=1e-300)).numpy()
        return _group_mean(np.where(counts, share, np.nan), groups)


class ExactAUC(RowMetric):
    """Area under the ROC curve from every score."""

    def columns(self, view: TaskView) -> dict[str, Tensor]:
        return {"score": view.scores, "label": view.label > 0}

    def prepare(self, columns: Columns) -> Callable[[F64 | None], float]:
        return SortedScores(columns["score"], columns["label"]).auc


class BinnedAUC(SumMetric):
    """One-against-the-rest AUC from T bins of the probability, averaged over classes.

    Probabilities are floored to the thresholds 0, 1/(T-1), ... 1, which equals torchmetrics' curve
    unless a probability is exactly 1. A binary task is one class. Constant memory.
    """

    def __init__(
        self, name: str, *, num_class: int, thresholds: int, average: str = "macro"
    ) -> None:
        self.classes = num_class if num_class > 2 else 1
        self.bins, self.average = thresholds, average
        super().__init__(name, width=self.classes * 2 * thresholds)

    def contributions(self, view: TaskView) -> Tensor:
        """[1, width]: the histogram [class, label, bin] of the batch."""
        codes = self.codes(view).reshape(-1)
        histogram = torch.zeros(self.sums.numel(), dtype=torch.float64, device=codes.device)
        ones = torch.ones_like(codes, dtype=torch.float64)
        return histogram.index_add(0, codes, ones).unsqueeze(0)

    def codes(self, view: TaskView) -> Tensor:
        """int64 [N, classes]: the cell of the histogram that each probability falls into."""
        if self.classes == 1:
            score = torch.sigmoid(view.scores) if view.task.output == "score" else view.scores
            probs, positive = score.unsqueeze(1), (view.label > 0).unsqueeze(1)
        else:
            probs = torch.softmax(view.logits, dim=1)
            kinds = torch.arange(self.classes, device=probs.device)
            positive = view.label.unsqueeze(1) == kinds
        edges = torch.linspace(0, 1, self.bins, device=probs.device, dtype=probs.dtype)
        bins = torch.bucketize(probs, edges, right=True).sub(1).clamp(0, self.bins - 1)
        offsets = torch.arange(self.classes, device=probs.device) * 2 * self.bins
        return bins + positive.long() * self.bins + offsets

    def keep(self, added: Tensor, users: Tensor, view: TaskView) -> None:
        self._rows.append({"codes": self.codes(view).int(), "users": users})

    def value(self, sums: F64) -> float:
        histogram = sums.reshape(self.classes, 2, self.bins)
        return _over_classes(auc_of_histogram(histogram), histogram[:, 1].sum(1), self.average)

    def resampler(self, index: Callable[[I64], I64]) -> Resampler | None:
        columns = self._rows.columns()
        if not columns:
            return None
        users, codes = index(self.users()), np.asarray(columns["codes"], dtype=np.int64)

        def value(counts: F64) -> float:
            weights = np.repeat(counts[users], self.classes)
            histogram = np.bincount(codes.reshape(-1), weights, self.sums.numel())
            return self.value(histogram.astype(np.float64, copy=False))

        return value


class ExactMulticlassAUC(RowMetric):
    """One-against-the-rest AUC from every probability, averaged over the classes that occur."""

    def __init__(self, name: str, *, average: str) -> None:
        super().__init__(name)
        self.average = average

    def columns(self, view: TaskView) -> dict[str, Tensor]:
        return {"probs": torch.softmax(view.logits, dim=1), "label": view.label}

    def prepare(self, columns: Columns) -> Callable[[F64 | None], float]:
        labels, probs = columns["label"], columns["probs"]
        hits = [labels == kind for kind in range(probs.shape[1])]
        curves = [SortedScores(probs[:, kind], hit) for kind, hit in enumerate(hits)]

        def value(weights: F64 | None) -> float:
            values = np.array([curve.auc(weights) for curve in curves])
            w = np.ones(len(labels)) if weights is None else weights
            return _over_classes(values, np.array([w[hit].sum() for hit in hits]), self.average)

        return value


class GroupedAUC(RowMetric):
    """Mean of the AUCs inside groups that have both classes, unweighted (as TorchEasyRec)."""

    def __init__(self, name: str, *, grouping_key: str) -> None:
        super().__init__(name)
        self.grouping_key = grouping_key

    def columns(self, view: TaskView) -> dict[str, Tensor]:
        return {"score": view.scores, "label": view.label > 0, "group": _group(view, self)}

    def prepare(self, columns: Columns) -> Callable[[F64 | None], float]:
        keys, values = auc_by_group(columns["score"], columns["label"], columns["group"])
        return _group_mean(values, np.searchsorted(keys, columns["group"]))


class XAUC(RowMetric):
    """Share of pairs of different labels whose scores are ordered alike, equal scores half.

    Every pair counts, in O(N log N); TorchEasyRec samples pairs and counts equal labels as wrong.
    """

    def columns(self, view: TaskView) -> dict[str, Tensor]:
        return {"score": view.scores, "label": view.label}

    def prepare(self, columns: Columns) -> Callable[[F64 | None], float]:
        score, label = (torch.from_numpy(columns[name]) for name in ("score", "label"))
        groups, broken = torch.zeros(len(score), dtype=torch.long), bool(score.isnan().any())

        def value(weights: F64 | None) -> float:
            w = None if weights is None else torch.from_numpy(weights)
            credit, pairs = concordance(score, label, groups, 1, w)
            return float("nan") if broken else _ratio(credit.item(), pairs.item())

        return value


class GroupedXAUC(RowMetric):
    """Mean of the XAUCs inside groups, weighted by their rows (as TorchEasyRec)."""

    def __init__(self, name: str, *, grouping_key: str) -> None:
        super().__init__(name)
        self.grouping_key = grouping_key

    def columns(self, view: TaskView) -> dict[str, Tensor]:
        return {"score": view.scores, "label": view.label, "group": _group(view, self)}

    def prepare(self, columns: Columns) -> Callable[[F64 | None], float]:
        keys, groups = np.unique(columns["group"], return_inverse=True)
        score, label = (torch.from_numpy(columns[name]) for name in ("score", "label"))
        credit, pairs = concordance(score, label, torch.from_numpy(groups), len(keys))
        broken = np.bincount(groups, score.isnan().numpy(), len(keys)) > 0
        defined = (pairs > 0).numpy() & ~broken
        share = np.where(defined, (credit / pairs.clamp(min=1)).numpy(), np.nan)
        return _group_mean(share, groups, np.bincount(groups, minlength=len(keys)))


class BatchXAUC(SumMetric):
    """Mean over batches of the XAUC inside a batch; depends on how rows are batched."""

    def contributions(self, view: TaskView) -> Tensor:
        groups = torch.zeros_like(view.label, dtype=torch.long)
        credit, pairs = concordance(view.scores, view.label, groups, 1)
        defined = pairs > 0
        share = torch.where(defined, credit / pairs.clamp(min=1), 0.0)
        return torch.stack([share, defined.double()], dim=1)

    def update(self, view: TaskView, users: Tensor | None = None) -> None:
        super().update(view)  # a batch has no user to resample

    def value(self, sums: F64) -> float:
        return _ratio(sums[0], sums[1])


def _ratio(total: float, count: float) -> float:
    return float(total / count) if count else float("nan")


def _group(view: TaskView, metric: GroupedAUC | GroupedXAUC | GroupedNDCGAtK) -> Tensor:
    reader = f"{metric.name}.grouping_key of task {view.task.name!r}"
    return view.samples.ids(metric.grouping_key, reader)


def _group_mean(
    values: F64, groups: I64, sizes: NDArray[np.generic] | None = None
) -> Callable[[F64 | None], float]:
    """Mean of group values [G] by `sizes`, NaN left out; row weights weigh a group by their mean.

    A resampled user brings or removes its groups whole, so the values themselves stay.
    """
    defined = ~np.isnan(values)
    clean = np.where(defined, values, 0.0)
    rows = np.bincount(groups, minlength=len(values))
    own = np.where(defined, 1.0 if sizes is None else sizes.astype(np.float64), 0.0)

    def value(weights: F64 | None) -> float:
        if weights is None:
            w = own
        else:
            w = own * np.bincount(groups, weights, len(values)) / np.maximum(rows, 1)
        return _ratio((w * clean).sum(), w.sum())

    return value


def _over_classes(values: F64, positives: F64, average: str) -> float:
    """Mean over classes, undefined ones left out; "weighted" by their positives."""
    defined = ~np.isnan(values)
    w = np.where(defined, positives if average == "weighted" else 1.0, 0.0)
    return _ratio((w * np.where(defined, values, 0.0)).sum(), w.sum())
