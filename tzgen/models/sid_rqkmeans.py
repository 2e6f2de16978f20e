# SPDX-License-Identifier: Apache-2.0
"""SidRqkmeans: residual k-means over item vectors, fitted at the end of one pass over them.

    r_0 = x;  c_s = nearest centroid of level s to r_s;  r_{s+1} = r_s - centroid

Every rank keeps a sample of its items; the fit adds up over ranks, so no process needs them all.
Source: TorchEasyRec's sid_rqkmeans; Deng et al. 2025 (OneRec, `balanced`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from google.protobuf.message import Message
from torch import Tensor

from tzgen.config.tasks import TaskSpec
from tzgen.embeddings import Groups
from tzgen.models.base import MODELS, Outputs
from tzgen.models.sid_base import FittedTokenizer, told_as
from tzgen.models.sid_candidates import CandidateOptions, candidate_options, decoded_codes
from tzgen.modules.quantizers import GumbelOptions, QuantizerOptions, ResidualQuantizer


@MODELS.register("sid_rqkmeans")
class SidRqkmeans(FittedTokenizer):
    """The tokenizer of the module docstring."""

    def __init__(
        self,
        config: Message,
        *,
        widths: Mapping[str, tuple[int, ...]],
        tasks: Sequence[TaskSpec],
        kernel: str,
    ) -> None:
        super().__init__(config, widths=widths, tasks=tasks, kernel=kernel)
        plain = QuantizerOptions(
            codebook=self.codebook,
            forward_mode="ste",
            rotation_trick=False,
            distance_type="l2",
            normalize_residuals=config.normalize_residuals,
            sinkhorn=None,
            ema=None,
            dead_codes=None,
            gumbel=GumbelOptions(1.0, 1.0, 1),
        )
        self.quantizer = ResidualQuantizer(plain, sum(widths[self.group])).requires_grad_(False)
        self.kmeans = replace(self.kmeans, balanced=config.balanced)
        self.candidates: CandidateOptions = candidate_options(config)

    def fit(self) -> None:
        with told_as("model_config.sid_rqkmeans.codebook"):
            self.quantizer.init_from(self.sample.rows(), self.kmeans)

    def forward(self, groups: Groups) -> Outputs:
        """The codes and how far they are from the items."""
        x = self.item_vectors(groups, self.group)
        with torch.no_grad():
            quantized = self.quantizer.eval()(x)
        tensors = {"inputs": x, "decoded": self._decoded(x, quantized.cumulative[:, -1])}
        return Outputs({}, tensors, decoded={"codes": quantized.codes})

    def predict(self, groups: Groups) -> Outputs:
        x = self.item_vectors(groups, self.group)
        return Outputs({}, decoded=decoded_codes(self.quantizer, x, self.candidates))

    def _decoded(self, x: Tensor, total: Tensor) -> Tensor:
        """What the codes stand for; with normalised residuals the sum has no scale of its own."""
        if not self.quantizer.options.normalize_residuals:
            return total
        scale = (x * total).sum(1, keepdim=True) / total.square().sum(1, keepdim=True).clamp(
            min=1e-12
        )
        return total * scale
